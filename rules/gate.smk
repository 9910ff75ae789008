# The gate: what of the pseudo-labels is trusted, from a table of their components alone.
# Makes that table, with the organ in which each component lies, and the decisions; students of the
# variant `gated` learn what is kept, for the others the decisions are information.


rule measure_components:
    input:
        manifest=rules.write_manifest.output.manifest,
        tumours=run.pseudo_labels("tumour", ".tsv"),
        tumour_components=run.pseudo_labels("tumour", ".components.tsv"),
        tumour_folder=ancient(run.pseudo_labels("tumour", "")),
        organs=run.pseudo_labels("organs", ".tsv"),
        organ_components=run.pseudo_labels("organs", ".components.tsv"),
        organ_folder=ancient(run.pseudo_labels("organs", "")),
        earlier_tumours=run.earlier("tumour", ".tsv"),
        earlier_tumour_folders=ancient(run.earlier("tumour", "")),
        earlier_organs=run.earlier("organs", ".tsv"),
        earlier_organ_folders=ancient(run.earlier("organs", "")),
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
        tumour_value=run.tumour_value,
    script:
        "../scripts/measure_components.py"


use rule measure_components as measure_known_components with:
    input:
        manifest=rules.write_manifest.output.manifest,
        known="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.tsv",
        known_components="<results>/round-{round}/pseudo_labels/known/{origin}/{shard}.components.tsv",
        known_folder=ancient(
            "<results>/round-{round}/pseudo_labels/known/{origin}/{shard}"
        ),
    output:
        table="<results>/round-{round}/gate/{origin}/known/{shard}.tsv",
        components="<results>/round-{round}/gate/{origin}/known/{shard}.components.tsv",
    log:
        text="<logs>/measure_known_components/round-{round}/{origin}/{shard}.log",
        problems="<logs>/measure_known_components/round-{round}/{origin}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/measure_known_components/round-{round}/{origin}/{shard}.tsv"


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
