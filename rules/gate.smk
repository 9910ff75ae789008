# The gate: what of the pseudo-labels is trusted, from a table of their components alone.
# Makes that table, with the organ in which each component lies, and the decisions; students of the
# variant `gated` learn what is kept, for the others the decisions are information.


rule measure_components:
    input:
        manifest=rules.write_manifest.output.manifest,
        # Of this round first, then of up to two before.
        tumours=run.rounds("tumour", ".tsv"),
        tumour_folders=ancient(run.rounds("tumour", "")),
        tumour_components=run.pseudo_labels("tumour", ".components.tsv"),
        organs=run.rounds("organs", ".tsv"),
        organ_folders=ancient(run.rounds("organs", "")),
        organ_components=run.pseudo_labels("organs", ".components.tsv"),
    output:
        table="<results>/round-{round}/gate/{origin}/{shard}.tsv",
        components="<results>/round-{round}/gate/{origin}/{shard}.components.tsv",
    log:
        text="<logs>/measure_components/round-{round}/{origin}/{shard}.log",
        problems="<logs>/measure_components/round-{round}/{origin}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/measure_components/round-{round}/{origin}/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=120,
    params:
        version=VERSIONS["components"],
        tumour_values=run.tumour_values,
        known=False,
    script:
        "../scripts/measure_components.py"


use rule measure_components as measure_known_components with:
    input:
        manifest=rules.write_manifest.output.manifest,
        tumours=["<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.tsv"],
        tumour_folders=ancient(
            ["<results>/round-{round}/pseudo_labels/known/{origin}/{shard}"]
        ),
        tumour_components="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.components.tsv",
    output:
        table="<results>/round-{round}/gate/{origin}/known/{shard}.tsv",
        components="<results>/round-{round}/gate/{origin}/known/{shard}.components.tsv",
    log:
        text="<logs>/measure_known_components/round-{round}/{origin}/{shard}.log",
        problems="<logs>/measure_known_components/round-{round}/{origin}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/measure_known_components/round-{round}/{origin}/{shard}.tsv"
    params:
        version=VERSIONS["components"],
        tumour_values=lambda wildcards: [run.tumour_value(wildcards)],
        known=True,


rule gate:
    input:
        manifest=rules.write_manifest.output.manifest,
        cases=expand(
            "<results>/round-{{round}}/gate/{{origin}}/{shard}.tsv",
            shard=run.train_shards,
        ),
        components=expand(
            "<results>/round-{{round}}/gate/{{origin}}/{shard}.components.tsv",
            shard=run.train_shards,
        ),
        known_cases=expand(
            "<results>/round-{{round}}/gate/{{origin}}/known/{shard}.tsv",
            shard=run.train_shards,
        ),
        known=expand(
            "<results>/round-{{round}}/gate/{{origin}}/known/{shard}.components.tsv",
            shard=run.train_shards,
        ),
    output:
        decisions="<results>/round-{round}/gate/{origin}/decisions.tsv",
        cases="<results>/round-{round}/gate/{origin}/cases.tsv",
        summary="<results>/round-{round}/gate/{origin}/summary.json",
    log:
        text="<logs>/gate/round-{round}/{origin}.log",
        problems="<logs>/gate/round-{round}/{origin}.problems.tsv",
    benchmark:
        "<benchmarks>/gate/round-{round}/{origin}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=30,
    params:
        gate=settings.gate.model_dump(),
        negatives=settings.selection.negatives,
    script:
        "../scripts/gate.py"
