# The student: a small 3D network that learns all classes from the fused labels.
# Makes intensity histograms, plan and preprocessed data for every kind of labels, and a model for
# every variant of the student and seed: `partial` and `marginal` differ in the loss only.


rule measure_student:
    input:
        manifest=paths.manifest(),
        fused=f"{paths.fusion()}.tsv",
        fused_folder=ancient(paths.fusion()),
    output:
        table=f"{paths.histograms()}.tsv",
        folder=directory(paths.histograms()),
    log:
        "<logs>/measure_student/round-{round}/{labels}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["measure"],
        labels=settings.labels,
    script:
        "../scripts/measure_student.py"


rule plan_student:
    input:
        manifests=lambda wildcards: run.each(
            paths.manifest(), run.fused_shards(wildcards.labels)
        ),
        histograms=of_labels(paths.histograms, ".tsv"),
        histogram_folders=ancient(of_labels(paths.histograms, "")),
        frozen=settings.student.plan or [],
    output:
        plans=paths.student_plan("plans.json"),
        dataset=paths.student_plan("dataset.json"),
    log:
        "<logs>/plan_student/round-{round}/{labels}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        recipe=settings.student.model_dump(),
        data=paths.student_data(shard=""),
        labels=settings.labels,
    script:
        "../scripts/plan_student.py"


rule preprocess_student:
    input:
        # Validation cases are for the learning curve: new ones wait for the next training. They
        # keep their own labels, and are never fused.
        manifest=not_outdated_by_validation(paths.manifest()),
        plans=paths.student_plan("plans.json"),
        fused=branch(
            lambda wildcards: wildcards.shard in run.training,
            then=f"{paths.fusion()}.tsv",
            otherwise=[],
        ),
        fused_folder=branch(
            lambda wildcards: wildcards.shard in run.training,
            then=ancient(paths.fusion()),
            otherwise=[],
        ),
    output:
        table=f"{paths.student_data()}.tsv",
        folder=directory(paths.student_data()),
    log:
        "<logs>/preprocess_student/round-{round}/{labels}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["preprocess"],
        labels=settings.labels,
    script:
        "../scripts/preprocess_student.py"


rule train_student:
    input:
        # Only for the cases that a fold leaves out.
        manifests=ancient(run.each(paths.manifest(), run.training)),
        plans=plan_of("plans.json"),
        dataset=plan_of("dataset.json"),
        training=of_labels(paths.student_data, ".tsv"),
        training_folders=ancient(of_labels(paths.student_data, "")),
        validation=ancient(of_labels(paths.student_data, ".tsv", run.validation)),
        validation_folders=ancient(of_labels(paths.student_data, "", run.validation)),
    output:
        table=f"{paths.student_model()}.tsv",
        model=directory(paths.student_model()),
    log:
        "<logs>/train_student/round-{round}/{variant}/seed-{seed}.log",
    conda:
        "../envs/panorgan.yaml"
    threads: settings.student.training.threads
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
        marginal=lambda wildcards: VARIANTS[wildcards.variant].marginal_loss,
    script:
        "../scripts/train_network.py"
