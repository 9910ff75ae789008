# The student's predictions of the validation and test cases, on exactly their images' grids.


use rule predict_tumours as predict_cases with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_tables=["<results>/round-{round}/student/{variant}/seed-{seed}/model.tsv"],
        models=ancient(["<results>/round-{round}/student/{variant}/seed-{seed}/model"]),
    output:
        table="<results>/round-{round}/predictions/{variant}/seed-{seed}/{shard}.tsv",
        efficiency="<results>/round-{round}/predictions/{variant}/seed-{seed}/{shard}.efficiency.tsv",
        folder=directory(
            "<results>/round-{round}/predictions/{variant}/seed-{seed}/{shard}"
        ),
    log:
        text="<logs>/predict_cases/round-{round}/{variant}/seed-{seed}/{shard}.log",
        problems="<logs>/predict_cases/round-{round}/{variant}/seed-{seed}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_cases/round-{round}/{variant}/seed-{seed}/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="all",
        members=lambda wildcards: [wildcards.seed],
