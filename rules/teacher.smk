# The teacher: a 2D attention network that learns tumours from the cases in which they are annotated.
# Makes its labels, plan, preprocessed data, model, and its scores on the validation cases.


rule select_tumour_cases:
    input:
        manifest=paths.manifest(),
    output:
        table=f"{paths.teacher_labels()}.tsv",
        folder=directory(paths.teacher_labels()),
    log:
        "<logs>/select_tumour_cases/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["select"],
        labels=settings.labels,
        min_tumour_ml=settings.selection.min_tumour_ml,
        exclude=settings.selection.exclude,
        negatives=settings.selection.negatives,
    script:
        "../scripts/select_tumour_cases.py"


rule plan_teacher:
    input:
        manifests=run.each(paths.manifest(), run.labelled),
        cases=run.each(paths.teacher_labels(), run.labelled, ".tsv"),
        histograms=run.each(paths.index(), run.labelled, ".tsv"),
        histogram_folders=ancient(run.each(paths.index(), run.labelled)),
        frozen=settings.teacher.plan or [],
    output:
        plans=paths.teacher_plan("plans.json"),
        dataset=paths.teacher_plan("dataset.json"),
    log:
        "<logs>/plan_teacher.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        recipe=settings.teacher.model_dump(),
        data=paths.teacher_data(shard=""),
        labels=settings.labels,
    script:
        "../scripts/plan_teacher.py"


rule preprocess_teacher:
    input:
        # Validation cases are for the learning curve: new ones wait for the next training.
        manifest=not_outdated_by_validation(paths.manifest()),
        plans=paths.teacher_plan("plans.json"),
        truth=not_outdated_by_validation(f"{paths.teacher_labels()}.tsv"),
        truth_folder=ancient(paths.teacher_labels()),
    output:
        table=f"{paths.teacher_data()}.tsv",
        folder=directory(paths.teacher_data()),
    log:
        "<logs>/preprocess_teacher/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["preprocess"],
        labels=settings.labels,
    script:
        "../scripts/preprocess_teacher.py"


rule train_teacher:
    input:
        # Only for the cases that a fold leaves out.
        manifests=ancient(run.each(paths.manifest(), run.labelled)),
        plans=paths.teacher_plan("plans.json"),
        dataset=paths.teacher_plan("dataset.json"),
        training=run.each(paths.teacher_data(), run.labelled, ".tsv"),
        training_folders=ancient(run.each(paths.teacher_data(), run.labelled)),
        validation=ancient(run.each(paths.teacher_data(), run.validation, ".tsv")),
        validation_folders=ancient(run.each(paths.teacher_data(), run.validation)),
    output:
        table=f"{paths.teacher_model()}.tsv",
        model=directory(paths.teacher_model()),
    log:
        "<logs>/train_teacher/seed-{seed}.log",
    conda:
        "../envs/panorgan.yaml"
    threads: settings.teacher.training.threads
    resources:
        gpu=1,
        mem_mb=run.memory,
        runtime=run.runtime,
        # No parameter: another place trains nothing anew.
        scratch=settings.scratch,
    params:
        version=VERSIONS["train"],
        labels=settings.labels,
        run=settings.run,
        phantom=settings.phantom is not None,
        marginal=False,
    script:
        "../scripts/train_network.py"


rule score_teacher:
    input:
        manifests=run.each(paths.manifest(), run.validation),
        truth=run.each(paths.teacher_labels(), run.validation, ".tsv"),
        truth_folders=ancient(run.each(paths.teacher_labels(), run.validation)),
        predictions=run.each(
            paths.teacher_predictions(settings.teacher.seed), run.validation, ".tsv"
        ),
        prediction_folders=ancient(
            run.each(paths.teacher_predictions(settings.teacher.seed), run.validation)
        ),
    output:
        cases=paths.teacher_scores(settings.teacher.seed, "cases.csv"),
        lesions=paths.teacher_scores(settings.teacher.seed, "lesions.csv"),
        summary=paths.teacher_scores(settings.teacher.seed, "summary.json"),
    log:
        "<logs>/score_teacher.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=[VERSIONS["score"], VERSIONS["summarise"]],
        labels=settings.labels,
        profile=settings.evaluation.profile,
        samples=settings.evaluation.samples,
        overlap=settings.evaluation.lesion_overlap,
        sizes_mm=settings.evaluation.lesion_sizes_mm,
    script:
        "../scripts/score_teacher.py"
