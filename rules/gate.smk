# The gate: what of the pseudo-labels is trusted, from a table of their components alone.
# Makes that table, with the organ in which each component lies, and the decisions; students of the
# variant `gated` learn what is kept, for the others the decisions are information.


rule measure_components:
    input:
        manifest=paths.manifest(),
        # Of this round first, then of up to two before.
        tumours=run.rounds("tumour", ".tsv"),
        tumour_folders=ancient(run.rounds("tumour", "")),
        tumour_components=run.pseudo_labels("tumour", ".components.tsv"),
        organs=run.rounds("organs", ".tsv"),
        organ_folders=ancient(run.rounds("organs", "")),
        organ_components=run.pseudo_labels("organs", ".components.tsv"),
    output:
        table=f"{paths.components()}.tsv",
        components=f"{paths.components()}.components.tsv",
    log:
        "<logs>/measure_components/round-{round}/{origin}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["components"],
        labels=settings.labels,
        tumour_values=run.tumour_values,
        known=False,
    script:
        "../scripts/measure_components.py"


use rule measure_components as measure_known_components with:
    input:
        manifest=paths.manifest(),
        tumours=[f"{paths.known_tumours()}.tsv"],
        tumour_folders=ancient([paths.known_tumours()]),
        tumour_components=[f"{paths.known_tumours()}.components.tsv"],
    output:
        table=f"{paths.known_components()}.tsv",
        components=f"{paths.known_components()}.components.tsv",
    log:
        "<logs>/measure_known_components/round-{round}/{origin}/{shard}.log",
    params:
        version=VERSIONS["components"],
        labels=settings.labels,
        tumour_values=lambda wildcards: [run.tumour_value(wildcards)],
        known=True,


rule judge_components:
    input:
        manifests=run.each(paths.manifest(), run.training),
        cases=run.each(paths.components(), run.training, ".tsv"),
        components=run.each(paths.components(), run.training, ".components.tsv"),
        known_cases=run.each(paths.known_components(), run.labelled, ".tsv"),
        known=run.each(paths.known_components(), run.labelled, ".components.tsv"),
    output:
        decisions=paths.gate("decisions.tsv"),
        cases=paths.gate("cases.tsv"),
        summary=paths.gate("summary.json"),
    log:
        "<logs>/judge_components/round-{round}/{origin}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["judge"],
        labels=settings.labels,
        gate=settings.gate.model_dump(),
        negatives=settings.selection.negatives,
    script:
        "../scripts/judge_components.py"
