# The student's predictions of the validation and test cases, on exactly their images' grids.


use rule predict_tumours as predict_cases with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_table="<results>/round-1/student/{variant}/seed-{seed}/model.tsv",
        model=ancient("<results>/round-1/student/{variant}/seed-{seed}/model"),
    output:
        table="<results>/round-1/predictions/{variant}/seed-{seed}/{shard}.tsv",
        efficiency="<results>/round-1/predictions/{variant}/seed-{seed}/{shard}.efficiency.tsv",
        folder=directory("<results>/round-1/predictions/{variant}/seed-{seed}/{shard}"),
    log:
        text="<logs>/predict_cases/{variant}/seed-{seed}/{shard}.log",
        problems="<logs>/predict_cases/{variant}/seed-{seed}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_cases/{variant}/seed-{seed}/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="all",
