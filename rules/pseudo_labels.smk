# Predictions, and pseudo-labels: labels that nobody drew.
# In the first round the teacher's tumours, for the training cases in which tumours are unknown, and
# organs, where they don't come with the cases: by a student that has learnt from the partial labels,
# or by a model that was given. In later rounds all classes by the students of the round before.
# Each table of pseudo-labels has one beside it of their components: volume, probability, HU, place.
# And, on exactly their images' grids, the students' predictions of validation and test cases.


rule predict_tumours:
    input:
        manifest=paths.manifest(),
        model_tables=[f"{paths.teacher_model(settings.teacher.seed)}.tsv"],
        models=ancient([paths.teacher_model(settings.teacher.seed)]),
        # Only the order matters: what the teacher is worth is known before it is used.
        scores=ancient(paths.teacher_scores(settings.teacher.seed, "summary.json")),
    output:
        table=f"{paths.pseudo_labels('tumour', 1)}.tsv",
        components=f"{paths.pseudo_labels('tumour', 1)}.components.tsv",
        efficiency=f"{paths.pseudo_labels('tumour', 1)}.efficiency.tsv",
        folder=directory(paths.pseudo_labels("tumour", 1)),
    log:
        "<logs>/predict_tumours/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    threads: settings.prediction.threads
    resources:
        gpu=gpus_to_predict,
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=[VERSIONS["predict"], VERSIONS["components"]],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="unknown tumours",
        members=[str(settings.teacher.seed)],
    script:
        "../scripts/predict_cases.py"


use rule predict_tumours as predict_validation_tumours with:
    input:
        manifest=paths.manifest(),
        model_tables=[f"{paths.teacher_model()}.tsv"],
        models=ancient([paths.teacher_model()]),
    output:
        table=f"{paths.teacher_predictions()}.tsv",
        efficiency=f"{paths.teacher_predictions()}.efficiency.tsv",
        folder=directory(paths.teacher_predictions()),
    log:
        "<logs>/predict_validation_tumours/seed-{seed}/{shard}.log",
    params:
        version=VERSIONS["predict"],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="known tumours",
        members=lambda wildcards: [wildcards.seed],


if settings.pseudo_labels.organs == MARGINAL:
    organ_model = paths.student_model(MARGINAL, settings.student.seeds[0], 1)
else:
    organ_model = paths.organ_model


rule import_organ_model:
    input:
        model=settings.pseudo_labels.organs,
    output:
        table=f"{paths.organ_model}.tsv",
        model=directory(paths.organ_model),
    log:
        "<logs>/import_organ_model.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["import"],
    script:
        "../scripts/import_organ_model.py"


use rule predict_tumours as predict_organs with:
    input:
        manifest=paths.manifest(),
        model_tables=[f"{organ_model}.tsv"],
        models=ancient([organ_model]),
    output:
        table=f"{paths.pseudo_labels('organs', 1)}.tsv",
        components=f"{paths.pseudo_labels('organs', 1)}.components.tsv",
        efficiency=f"{paths.pseudo_labels('organs', 1)}.efficiency.tsv",
        folder=directory(paths.pseudo_labels("organs", 1)),
    log:
        "<logs>/predict_organs/{shard}.log",
    params:
        version=[VERSIONS["predict"], VERSIONS["components"]],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="unknown organs",
        members=[str(settings.student.seeds[0])],
        translate=True,


# The training cases in which tumours are known and which the network did not train on: they tell
# what its tumours are worth.
use rule predict_tumours as predict_known_tumours with:
    input:
        manifest=paths.manifest(),
        taught=run.taught,
        model_tables=run.models("judges", ".tsv"),
        models=ancient(run.models("judges", "")),
    output:
        table=f"{paths.known_tumours()}.tsv",
        components=f"{paths.known_tumours()}.components.tsv",
        efficiency=f"{paths.known_tumours()}.efficiency.tsv",
        folder=directory(paths.known_tumours()),
    log:
        "<logs>/predict_known_tumours/round-{round}/{origin}/{shard}.log",
    params:
        version=[VERSIONS["predict"], VERSIONS["components"]],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="known tumours in training",
        members=lambda wildcards: [str(member) for member in run.judges(wildcards)],


use rule predict_tumours as relabel_cases with:
    input:
        manifest=paths.manifest(),
        model_tables=run.models("makers", ".tsv"),
        models=ancient(run.models("makers", "")),
    output:
        table=f"{paths.pseudo_labels()}.tsv",
        components=f"{paths.pseudo_labels()}.components.tsv",
        efficiency=f"{paths.pseudo_labels()}.efficiency.tsv",
        folder=directory(paths.pseudo_labels()),
    log:
        "<logs>/relabel_cases/round-{round}/{origin}/{shard}.log",
    params:
        version=[VERSIONS["predict"], VERSIONS["components"]],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="unknown classes",
        members=lambda wildcards: [str(member) for member in run.makers(wildcards)],


use rule predict_tumours as predict_cases with:
    input:
        manifest=paths.manifest(),
        model_tables=[f"{paths.student_model()}.tsv"],
        models=ancient([paths.student_model()]),
    output:
        table=f"{paths.predictions()}.tsv",
        efficiency=f"{paths.predictions()}.efficiency.tsv",
        folder=directory(paths.predictions()),
    log:
        "<logs>/predict_cases/round-{round}/{variant}/seed-{seed}/{shard}.log",
    params:
        version=VERSIONS["predict"],
        labels=settings.labels,
        prediction=settings.prediction.model_dump(),
        wanted="all",
        members=lambda wildcards: [wildcards.seed],
