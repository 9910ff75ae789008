# The teacher: a 2D attention network that learns tumours from the cases in which they are annotated.
# Makes its labels, plan, preprocessed data, model, and its scores on the validation cases.


rule select_tumour_cases:
    input:
        manifest=rules.write_manifest.output.manifest,
    output:
        table="<results>/teacher/labels/{shard}.tsv",
        folder=directory("<results>/teacher/labels/{shard}"),
    log:
        text="<logs>/select_tumour_cases/{shard}.log",
        problems="<logs>/select_tumour_cases/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/select_tumour_cases/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["select"],
        min_tumour_ml=settings.selection.min_tumour_ml,
        exclude=settings.selection.exclude,
        negatives=settings.selection.negatives,
    script:
        "../scripts/select_tumour_cases.py"


rule plan_teacher:
    input:
        manifest=rules.write_manifest.output.manifest,
        cases=expand("<results>/teacher/labels/{shard}.tsv", shard=run.train_shards),
        histograms=expand("<results>/cases/index/{shard}.tsv", shard=run.train_shards),
        histogram_folders=ancient(
            expand("<results>/cases/index/{shard}", shard=run.train_shards)
        ),
        frozen=settings.teacher.plan or [],
    output:
        plans="<results>/teacher/plans.json",
        dataset="<results>/teacher/dataset.json",
    log:
        text="<logs>/plan_teacher.log",
        problems="<logs>/plan_teacher.problems.tsv",
    benchmark:
        "<benchmarks>/plan_teacher.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=30,
    params:
        recipe=settings.teacher.model_dump(),
    script:
        "../scripts/plan_teacher.py"


rule preprocess_teacher:
    input:
        manifest=rules.write_manifest.output.manifest,
        plans=rules.plan_teacher.output.plans,
        truth=rules.select_tumour_cases.output.table,
        truth_folder=ancient(rules.select_tumour_cases.output.folder),
    output:
        table="<results>/teacher/preprocessed/{shard}.tsv",
        folder=directory("<results>/teacher/preprocessed/{shard}"),
    log:
        text="<logs>/preprocess_teacher/{shard}.log",
        problems="<logs>/preprocess_teacher/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/preprocess_teacher/{shard}.tsv"
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
        "../scripts/preprocess_teacher.py"


rule train_teacher:
    input:
        # Only for the cases that a fold leaves out. By its path: `ancient` of another rule's output
        # would make it ancient wherever it is named.
        manifest=ancient("<results>/cases/manifest.tsv"),
        plans=rules.plan_teacher.output.plans,
        dataset=rules.plan_teacher.output.dataset,
        training=expand(
            "<results>/teacher/preprocessed/{shard}.tsv", shard=run.train_shards
        ),
        training_folders=ancient(
            expand("<results>/teacher/preprocessed/{shard}", shard=run.train_shards)
        ),
        validation=expand(
            "<results>/teacher/preprocessed/{shard}.tsv",
            shard=run.evaluation_shards,
        ),
        validation_folders=ancient(
            expand(
                "<results>/teacher/preprocessed/{shard}", shard=run.evaluation_shards
            )
        ),
    output:
        table="<results>/teacher/seed-{seed}/model.tsv",
        model=directory("<results>/teacher/seed-{seed}/model"),
    log:
        text="<logs>/train_teacher/seed-{seed}.log",
        problems="<logs>/train_teacher/seed-{seed}.problems.tsv",
    benchmark:
        "<benchmarks>/train_teacher/seed-{seed}.tsv"
    retries: 2
    conda:
        "../envs/panorgan.yaml"
    threads: settings.teacher.training.threads
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=10080,
    params:
        version=VERSIONS["train"],
        phantom=settings.phantom is not None,
        marginal=False,
    script:
        "../scripts/train_network.py"


rule score_teacher:
    input:
        manifest=rules.write_manifest.output.manifest,
        truth=expand(
            "<results>/teacher/labels/{shard}.tsv", shard=run.evaluation_shards
        ),
        truth_folders=ancient(
            expand("<results>/teacher/labels/{shard}", shard=run.evaluation_shards)
        ),
        predictions=expand(
            "<results>/teacher/seed-{seed}/predictions/{shard}.tsv",
            seed=settings.teacher.seed,
            shard=run.evaluation_shards,
        ),
        prediction_folders=ancient(
            expand(
                "<results>/teacher/seed-{seed}/predictions/{shard}",
                seed=settings.teacher.seed,
                shard=run.evaluation_shards,
            )
        ),
    output:
        cases=f"<results>/teacher/seed-{settings.teacher.seed}/scores/cases.csv",
        lesions=f"<results>/teacher/seed-{settings.teacher.seed}/scores/lesions.csv",
        summary=f"<results>/teacher/seed-{settings.teacher.seed}/scores/summary.json",
    log:
        text="<logs>/score_teacher.log",
        problems="<logs>/score_teacher.problems.tsv",
    benchmark:
        "<benchmarks>/score_teacher.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=60,
    params:
        version=VERSIONS["score"],
        profile=settings.evaluation.profile,
        samples=settings.evaluation.samples,
        overlap=settings.evaluation.lesion_overlap,
        sizes_mm=settings.evaluation.lesion_sizes_mm,
    script:
        "../scripts/score_teacher.py"
