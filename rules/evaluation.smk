# Scores of the predictions: a row per case and class, a row per lesion, and means; and the ablation,
# which compares students that differ in the labels that they learnt from.


rule score_cases:
    input:
        manifest=paths.manifest(),
        predictions=paths.predictions() + ".tsv",
        prediction_folder=ancient(paths.predictions()),
    output:
        table=paths.scores() + ".tsv",
        scores=paths.scores() + ".scores.tsv",
        lesions=paths.scores() + ".lesions.tsv",
    log:
        "<logs>/score_cases/round-{round}/{variant}/seed-{seed}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        version=VERSIONS["score"],
        labels=settings.labels,
        profile=settings.evaluation.profile,
        overlap=settings.evaluation.lesion_overlap,
    script:
        "../scripts/score_cases.py"


def of_split(place, end=""):
    """Input function: a file for each shard of a split."""
    shards = dict(validation=run.validation, test=run.test)
    return lambda wildcards: run.each(place, shards[wildcards.split], end)


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
        mem_mb=2000,
        runtime=30,
    params:
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
        table=paths.ablation + ".tsv",
        page=report(
            paths.ablation + ".md",
            caption="captions/ablation.rst",
            category="Ablation",
        ),
        details=paths.ablation + ".json",
    log:
        "<logs>/write_ablation.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        arms=settings.ablation.arms,
        samples=settings.ablation.samples,
        labels=settings.labels,
        classes=run.classes,
    script:
        "../scripts/write_ablation.py"
