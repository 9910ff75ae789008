# Scores of the predictions: a row per case and class, a row per lesion, and means; and the ablation,
# which compares students that differ in the labels that they learnt from.


rule score_cases:
    input:
        manifest=paths.manifest(),
        predictions=f"{paths.predictions()}.tsv",
        prediction_folder=ancient(paths.predictions()),
    output:
        table=f"{paths.scores()}.tsv",
        scores=f"{paths.scores()}.scores.tsv",
        lesions=f"{paths.scores()}.lesions.tsv",
    log:
        "<logs>/score_cases/round-{round}/{variant}/seed-{seed}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["score"],
        labels=settings.labels,
        profile=settings.evaluation.profile,
        overlap=settings.evaluation.lesion_overlap,
    script:
        "../scripts/score_cases.py"


rule summarise_scores:
    input:
        scores=of_split(paths.scores(), ".scores.tsv"),
        lesions=of_split(paths.scores(), ".lesions.tsv"),
    output:
        cases=report(
            paths.results("cases.csv"),
            caption="captions/cases.rst",
            category="Scores",
            labels={
                "student": "{variant}, round {round}, seed {seed}",
                "cases": "{split}",
                "table": "cases",
            },
        ),
        lesions=report(
            paths.results("lesions.csv"),
            caption="captions/lesions.rst",
            category="Scores",
            labels={
                "student": "{variant}, round {round}, seed {seed}",
                "cases": "{split}",
                "table": "lesions",
            },
        ),
        summary=paths.results("summary.json"),
    log:
        "<logs>/summarise_scores/round-{round}/{variant}/seed-{seed}/{split}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["summarise"],
        labels=settings.labels,
        profile=settings.evaluation.profile,
        samples=settings.evaluation.samples,
        overlap=settings.evaluation.lesion_overlap,
        sizes_mm=settings.evaluation.lesion_sizes_mm,
    script:
        "../scripts/summarise_scores.py"


rule write_ablation:
    input:
        **run.ablation,
    output:
        table=f"{paths.ablation}.tsv",
        page=report(
            f"{paths.ablation}.md",
            caption="captions/ablation.rst",
            category="Ablation",
        ),
        details=f"{paths.ablation}.json",
    log:
        "<logs>/write_ablation.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["summarise"],
        arms=settings.ablation.arms,
        samples=settings.ablation.samples,
        labels=settings.labels,
        classes=run.classes,
    script:
        "../scripts/write_ablation.py"
