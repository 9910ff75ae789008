# The teacher's tumours: pseudo-labels for the training cases in which tumours are unknown,
# and its predictions of the validation cases, on which it is scored first.
# Organs, where they don't come with the cases: by a student that has learnt from the partial labels,
# or by a model that was given.
organs_from_cases = settings.pseudo_labels.organs == "cases"


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


if settings.pseudo_labels.organs == MARGINAL:
    organ_model = (
        f"<results>/round-1/student/{MARGINAL}/seed-{settings.student.seeds[0]}/model"
    )
else:
    organ_model = "<results>/round-1/pseudo_labels/organ_model"


rule import_organ_model:
    input:
        model=settings.pseudo_labels.organs,
    output:
        table="<results>/round-1/pseudo_labels/organ_model.tsv",
        model=directory("<results>/round-1/pseudo_labels/organ_model"),
    log:
        text="<logs>/import_organ_model.log",
        problems="<logs>/import_organ_model.problems.tsv",
    benchmark:
        "<benchmarks>/import_organ_model.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=30,
    params:
        version=VERSIONS["import"],
    script:
        "../scripts/import_organ_model.py"


use rule predict_tumours as predict_organs with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_table=f"{organ_model}.tsv",
        model=ancient(organ_model),
    output:
        table="<results>/round-1/pseudo_labels/organs/{shard}.tsv",
        efficiency="<results>/round-1/pseudo_labels/organs/{shard}.efficiency.tsv",
        folder=directory("<results>/round-1/pseudo_labels/organs/{shard}"),
    log:
        text="<logs>/predict_organs/{shard}.log",
        problems="<logs>/predict_organs/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_organs/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="unknown organs",
        translate=True,
