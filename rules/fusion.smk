# Fusion: partial labels + tumour pseudo-labels (stage 1), then organ pseudo-labels (stage 2).
# Makes a full label and a map of where each voxel's label is from, for every training case; and the
# same without pseudo-labels (partial), for students that learn from the annotations alone.
# Later rounds, and the variants `gated` and `noise`, are fused in one pass.
ruleorder: fuse_partial > fuse_stage1 > fuse_stage2 > fuse_cases


rule fuse_partial:
    input:
        manifest=rules.write_manifest.output.manifest,
    output:
        table="<results>/round-1/fusion/partial/{shard}.tsv",
        composition="<results>/round-1/fusion/partial/{shard}.composition.tsv",
        conflicts="<results>/round-1/fusion/partial/{shard}.conflicts.tsv",
        specks="<results>/round-1/fusion/partial/{shard}.specks.tsv",
        folder=directory("<results>/round-1/fusion/partial/{shard}"),
    log:
        text="<logs>/fuse_partial/{shard}.log",
        problems="<logs>/fuse_partial/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/fuse_partial/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["fuse"],
    script:
        "../scripts/fuse_partial.py"


rule fuse_stage1:
    input:
        manifest=rules.write_manifest.output.manifest,
        tumours=rules.predict_tumours.output.table,
        tumour_folder=ancient(rules.predict_tumours.output.folder),
        organs=run.pseudo_labels("organs", ".tsv"),
        organ_folder=ancient(run.pseudo_labels("organs", "")),
    output:
        table="<results>/round-1/fusion/stage1/{shard}.tsv",
        composition="<results>/round-1/fusion/stage1/{shard}.composition.tsv",
        conflicts="<results>/round-1/fusion/stage1/{shard}.conflicts.tsv",
        specks="<results>/round-1/fusion/stage1/{shard}.specks.tsv",
        folder=directory("<results>/round-1/fusion/stage1/{shard}"),
    log:
        text="<logs>/fuse_stage1/{shard}.log",
        problems="<logs>/fuse_stage1/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/fuse_stage1/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["fuse"],
        order=settings.fusion.order,
    script:
        "../scripts/fuse_stage1.py"


rule fuse_stage2:
    input:
        manifest=rules.write_manifest.output.manifest,
        corrected=lambda wildcards: run.corrected(wildcards.shard),
        stage1=rules.fuse_stage1.output.table,
        stage1_folder=ancient(rules.fuse_stage1.output.folder),
        organs=run.pseudo_labels("organs", ".tsv"),
        organ_folder=ancient(run.pseudo_labels("organs", "")),
    output:
        table="<results>/round-1/fusion/stage2/{shard}.tsv",
        composition="<results>/round-1/fusion/stage2/{shard}.composition.tsv",
        conflicts="<results>/round-1/fusion/stage2/{shard}.conflicts.tsv",
        folder=directory("<results>/round-1/fusion/stage2/{shard}"),
    log:
        text="<logs>/fuse_stage2/{shard}.log",
        problems="<logs>/fuse_stage2/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/fuse_stage2/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["fuse"],
        corrections=lambda wildcards: run.corrections(wildcards.shard),
    script:
        "../scripts/fuse_stage2.py"


rule fuse_cases:
    input:
        manifest=rules.write_manifest.output.manifest,
        corrected=lambda wildcards: run.corrected(wildcards.shard),
        tumours=run.pseudo_labels("tumour", ".tsv"),
        tumour_folder=ancient(run.pseudo_labels("tumour", "")),
        organs=run.pseudo_labels("organs", ".tsv"),
        organ_folder=ancient(run.pseudo_labels("organs", "")),
        decisions=run.decisions,
    output:
        table="<results>/round-{round}/fusion/{labels}/{shard}.tsv",
        composition="<results>/round-{round}/fusion/{labels}/{shard}.composition.tsv",
        conflicts="<results>/round-{round}/fusion/{labels}/{shard}.conflicts.tsv",
        specks="<results>/round-{round}/fusion/{labels}/{shard}.specks.tsv",
        folder=directory("<results>/round-{round}/fusion/{labels}/{shard}"),
    log:
        text="<logs>/fuse_cases/round-{round}/{labels}/{shard}.log",
        problems="<logs>/fuse_cases/round-{round}/{labels}/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/fuse_cases/round-{round}/{labels}/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        version=VERSIONS["fuse"],
        order=settings.fusion.order,
        tumour_value=run.tumour_value,
        shuffle_seed=lambda wildcards: 0 if wildcards.labels == NOISE else None,
        corrections=lambda wildcards: run.corrections(wildcards.shard),
    script:
        "../scripts/fuse_cases.py"
