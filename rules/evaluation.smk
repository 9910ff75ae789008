# Scores of the predictions: a row per case and class, a row per lesion, and means.


rule score_cases:
    input:
        manifest=rules.write_manifest.output.manifest,
        predictions=rules.predict_cases.output.table,
        prediction_folder=ancient(rules.predict_cases.output.folder),
    output:
        table="<results>/round-{round}/scores/{variant}/seed-{seed}/{shard}.tsv",
        scores="<results>/round-{round}/scores/{variant}/seed-{seed}/{shard}.scores.tsv",
        lesions="<results>/round-{round}/scores/{variant}/seed-{seed}/{shard}.lesions.tsv",
    log:
        text="<logs>/score_cases/round-{round}/{variant}/seed-{seed}/{shard}.log",
        problems="<logs>/score_cases/round-{round}/{variant}/seed-{seed}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/score_cases/round-{round}/{variant}/seed-{seed}/{shard}.tsv"
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
        overlap=settings.evaluation.lesion_overlap,
        tables=run.tables_digest(),
    script:
        "../scripts/score_cases.py"


rule summarise_scores:
    input:
        manifest=rules.write_manifest.output.manifest,
        scores=expand(
            "<results>/round-{{round}}/scores/{{variant}}/seed-{{seed}}/{shard}.scores.tsv",
            shard=run.evaluation_shards,
        ),
        lesions=expand(
            "<results>/round-{{round}}/scores/{{variant}}/seed-{{seed}}/{shard}.lesions.tsv",
            shard=run.evaluation_shards,
        ),
    output:
        cases=report(
            "<results>/round-{round}/scores/{variant}/seed-{seed}/{split}/cases.csv",
            caption="captions/cases.rst",
            category="Scores",
            labels={
                "student": "{variant}, round {round}, seed {seed}",
                "cases": "{split}",
                "table": "cases",
            },
        ),
        lesions=report(
            "<results>/round-{round}/scores/{variant}/seed-{seed}/{split}/lesions.csv",
            caption="captions/lesions.rst",
            category="Scores",
            labels={
                "student": "{variant}, round {round}, seed {seed}",
                "cases": "{split}",
                "table": "lesions",
            },
        ),
        summary="<results>/round-{round}/scores/{variant}/seed-{seed}/{split}/summary.json",
    log:
        text="<logs>/summarise_scores/round-{round}/{variant}/seed-{seed}/{split}.log",
        problems="<logs>/summarise_scores/round-{round}/{variant}/seed-{seed}/{split}.problems.tsv",
    benchmark:
        "<benchmarks>/summarise_scores/round-{round}/{variant}/seed-{seed}/{split}.tsv"
    wildcard_constraints:
        split="validation|test",
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        profile=settings.evaluation.profile,
        samples=settings.evaluation.samples,
        overlap=settings.evaluation.lesion_overlap,
        sizes_mm=settings.evaluation.lesion_sizes_mm,
    script:
        "../scripts/summarise_scores.py"
