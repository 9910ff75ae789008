# The student: a small 3D network that learns all classes from the fused labels.
# Makes intensity histograms, plan and preprocessed data for every kind of labels, and a model for
# every variant of the student and seed: `partial` and `marginal` differ in the loss only.


rule measure_student:
    input:
        manifest=rules.write_manifest.output.manifest,
        fused="<results>/round-{round}/fusion/{labels}/{shard}.tsv",
        fused_folder=ancient("<results>/round-{round}/fusion/{labels}/{shard}"),
    output:
        table="<results>/round-{round}/student/{labels}/histograms/{shard}.tsv",
        folder=directory("<results>/round-{round}/student/{labels}/histograms/{shard}"),
    log:
        text="<logs>/measure_student/round-{round}/{labels}/{shard}.log",
        problems="<logs>/measure_student/round-{round}/{labels}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/measure_student/round-{round}/{labels}/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        version=VERSIONS["measure"],
    script:
        "../scripts/measure_student.py"


rule plan_student:
    input:
        manifest=rules.write_manifest.output.manifest,
        histograms=expand(
            "<results>/round-{{round}}/student/{{labels}}/histograms/{shard}.tsv",
            shard=run.train_shards,
        ),
        histogram_folders=ancient(
            expand(
                "<results>/round-{{round}}/student/{{labels}}/histograms/{shard}",
                shard=run.train_shards,
            )
        ),
        frozen=settings.student.plan or [],
    output:
        plans="<results>/round-{round}/student/{labels}/plans.json",
        dataset="<results>/round-{round}/student/{labels}/dataset.json",
    log:
        text="<logs>/plan_student/round-{round}/{labels}.log",
        problems="<logs>/plan_student/round-{round}/{labels}.problems.tsv",
    benchmark:
        "<benchmarks>/plan_student/round-{round}/{labels}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=30,
    params:
        recipe=settings.student.model_dump(),
    script:
        "../scripts/plan_student.py"


rule preprocess_student:
    input:
        manifest=rules.write_manifest.output.manifest,
        plans=rules.plan_student.output.plans,
        # Validation cases keep their own labels: they are never fused.
        fused=branch(
            lambda wildcards: wildcards.shard in run.train_shards,
            then="<results>/round-{round}/fusion/{labels}/{shard}.tsv",
            otherwise=[],
        ),
        fused_folder=branch(
            lambda wildcards: wildcards.shard in run.train_shards,
            then=ancient("<results>/round-{round}/fusion/{labels}/{shard}"),
            otherwise=[],
        ),
    output:
        table="<results>/round-{round}/student/{labels}/preprocessed/{shard}.tsv",
        folder=directory(
            "<results>/round-{round}/student/{labels}/preprocessed/{shard}"
        ),
    log:
        text="<logs>/preprocess_student/round-{round}/{labels}/{shard}.log",
        problems="<logs>/preprocess_student/round-{round}/{labels}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/preprocess_student/round-{round}/{labels}/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=240,
    params:
        version=VERSIONS["preprocess"],
    script:
        "../scripts/preprocess_student.py"


rule train_student:
    input:
        # Only for the cases that a fold leaves out. By its path: `ancient` of another rule's output
        # would make it ancient wherever it is named.
        manifest=ancient("<results>/cases/manifest.tsv"),
        plans=run.of_labels("<results>/round-{round}/student/{labels}/plans.json"),
        dataset=run.of_labels("<results>/round-{round}/student/{labels}/dataset.json"),
        training=run.of_labels(
            "<results>/round-{round}/student/{labels}/preprocessed/{shard}.tsv",
            run.train_shards,
        ),
        training_folders=ancient(
            run.of_labels(
                "<results>/round-{round}/student/{labels}/preprocessed/{shard}",
                run.train_shards,
            )
        ),
        validation=run.of_labels(
            "<results>/round-{round}/student/{labels}/preprocessed/{shard}.tsv",
            run.evaluation_shards,
        ),
        validation_folders=ancient(
            run.of_labels(
                "<results>/round-{round}/student/{labels}/preprocessed/{shard}",
                run.evaluation_shards,
            )
        ),
    output:
        table="<results>/round-{round}/student/{variant}/seed-{seed}/model.tsv",
        model=directory("<results>/round-{round}/student/{variant}/seed-{seed}/model"),
    log:
        text="<logs>/train_student/round-{round}/{variant}/seed-{seed}.log",
        problems="<logs>/train_student/round-{round}/{variant}/seed-{seed}.problems.tsv",
    benchmark:
        "<benchmarks>/train_student/round-{round}/{variant}/seed-{seed}.tsv"
    retries: 2
    conda:
        "../envs/panorgan.yaml"
    threads: settings.student.training.threads
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=10080,
    params:
        version=VERSIONS["train"],
        phantom=settings.phantom is not None,
        marginal=lambda wildcards: wildcards.variant == MARGINAL,
    script:
        "../scripts/train_network.py"
