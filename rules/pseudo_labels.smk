# Pseudo-labels: labels that nobody drew.
# In the first round the teacher's tumours, for the training cases in which tumours are unknown, and
# organs, where they don't come with the cases: by a student that has learnt from the partial labels,
# or by a model that was given. In later rounds all classes by the students of the round before.
# Each table of labels has one beside it of their components: volume, probability, HU, place.
rule predict_tumours:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_tables=[f"<results>/teacher/seed-{settings.teacher.seed}/model.tsv"],
        models=ancient([f"<results>/teacher/seed-{settings.teacher.seed}/model"]),
        # Only the order matters: what the teacher is worth is known before it is used.
        scores=rules.score_teacher.output.summary,
    output:
        table="<results>/round-1/pseudo_labels/tumour/{shard}.tsv",
        components="<results>/round-1/pseudo_labels/tumour/{shard}.components.tsv",
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
        members=[str(settings.teacher.seed)],
    script:
        "../scripts/predict_cases.py"


use rule predict_tumours as predict_validation_tumours with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_tables=["<results>/teacher/seed-{seed}/model.tsv"],
        models=ancient(["<results>/teacher/seed-{seed}/model"]),
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
        members=lambda wildcards: [wildcards.seed],


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
        model_tables=[f"{organ_model}.tsv"],
        models=ancient([organ_model]),
    output:
        table="<results>/round-1/pseudo_labels/organs/{shard}.tsv",
        components="<results>/round-1/pseudo_labels/organs/{shard}.components.tsv",
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
        members=[str(settings.student.seeds[0])],
        translate=True,


# The training cases in which tumours are known and which the network did not train on: they tell
# what its tumours are worth.
use rule predict_tumours as predict_known_tumours with:
    input:
        manifest=rules.write_manifest.output.manifest,
        taught=run.taught,
        model_tables=run.models("judges", ".tsv"),
        models=ancient(run.models("judges", "")),
    output:
        table="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.tsv",
        components="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.components.tsv",
        efficiency="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.efficiency.tsv",
        folder=directory("<results>/round-{round}/pseudo_labels/known/{origin}/{shard}"),
    log:
        text="<logs>/predict_known_tumours/round-{round}/{origin}/{shard}.log",
        problems="<logs>/predict_known_tumours/round-{round}/{origin}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/predict_known_tumours/round-{round}/{origin}/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="known tumours in training",
        members=lambda wildcards: [str(member) for member in run.judges(wildcards)],


use rule predict_tumours as relabel_cases with:
    input:
        manifest=rules.write_manifest.output.manifest,
        model_tables=run.models("makers", ".tsv"),
        models=ancient(run.models("makers", "")),
    output:
        table="<results>/round-{round}/pseudo_labels/{origin}/{shard}.tsv",
        components="<results>/round-{round}/pseudo_labels/{origin}/{shard}.components.tsv",
        efficiency="<results>/round-{round}/pseudo_labels/{origin}/{shard}.efficiency.tsv",
        folder=directory("<results>/round-{round}/pseudo_labels/{origin}/{shard}"),
    log:
        text="<logs>/relabel_cases/round-{round}/{origin}/{shard}.log",
        problems="<logs>/relabel_cases/round-{round}/{origin}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/relabel_cases/round-{round}/{origin}/{shard}.tsv"
    params:
        version=VERSIONS["predict"],
        prediction=settings.prediction.model_dump(),
        wanted="unknown classes",
        members=lambda wildcards: [str(member) for member in run.makers(wildcards)],
