# The teacher's tumours: pseudo-labels for the training cases in which tumours are unknown,
# and its predictions of the validation cases, on which it is scored first.


rule predict_tumours:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_table=f"<results>/teacher/seed-{settings.teacher.seed}/model.tsv",
        model=ancient(f"<results>/teacher/seed-{settings.teacher.seed}/model"),
        # Only the order matters: what the teacher is worth is known before it is used.
        scores=rules.score_teacher.output.summary,
    output:
        table="<results>/round-1/pseudo_labels/tumour/{shard}.tsv",
        efficiency="<results>/round-1/pseudo_labels/tumour/{shard}.efficiency.tsv",
        folder=directory("<results>/round-1/pseudo_labels/tumour/{shard}"),
    log:
        text="<logs>/predict_tumours/{shard}.log",
        problems="<logs>/predict_tumours/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_tumours/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: settings.prediction.threads
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
        runtime=480,
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="unknown tumours",
    script:
        "../scripts/predict_cases.py"


use rule predict_tumours as predict_validation_tumours with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_table="<results>/teacher/seed-{seed}/model.tsv",
        model=ancient("<results>/teacher/seed-{seed}/model"),
    output:
        table="<results>/teacher/seed-{seed}/predictions/{shard}.tsv",
        efficiency="<results>/teacher/seed-{seed}/predictions/{shard}.efficiency.tsv",
        folder=directory("<results>/teacher/seed-{seed}/predictions/{shard}"),
    log:
        text="<logs>/predict_validation_tumours/seed-{seed}/{shard}.log",
        problems="<logs>/predict_validation_tumours/seed-{seed}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_validation_tumours/seed-{seed}/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="known tumours",
