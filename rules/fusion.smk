# Fusion: partial labels + tumour pseudo-labels (stage 1), then organ pseudo-labels (stage 2).
# Makes a full label and a map of where each voxel's label is from, for every training case. What
# pseudo-labels there are, and what becomes of them before they are fused, depends on the name of the
# labels: `partial` has none, `gated` obeys the gate, `noise` shuffles the organs.


rule fuse_tumours:
    input:
        manifest=paths.manifest(),
        tumours=run.tumours(".tsv"),
        tumour_folders=ancient(run.tumours("")),
        # Only where they tell whether a tumour is admitted.
        organs=run.organs(".tsv"),
        organ_folders=ancient(run.organs("")),
        decisions=run.decisions,
    output:
        table=f"{paths.fusion('{stage1}')}.tsv",
        composition=f"{paths.fusion('{stage1}')}.composition.tsv",
        conflicts=f"{paths.fusion('{stage1}')}.conflicts.tsv",
        specks=f"{paths.fusion('{stage1}')}.specks.tsv",
        folder=directory(paths.fusion("{stage1}")),
    log:
        "<logs>/fuse_tumours/round-{round}/{stage1}/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["fuse"],
        labels=settings.labels,
        order=settings.fusion.order,
        tumour_value=run.tumour_value,
    script:
        "../scripts/fuse_tumours.py"


rule fuse_organs:
    input:
        manifest=paths.manifest(),
        first=run.first(".tsv"),
        first_folder=ancient(run.first("")),
        organs=run.organs(".tsv"),
        organ_folders=ancient(run.organs("")),
        decisions=run.decisions,
        checked=ancient(paths.organs_checked),
        corrected=lambda wildcards: list(run.corrected_labels(wildcards).values()),
    output:
        table=f"{paths.fusion()}.tsv",
        composition=f"{paths.fusion()}.composition.tsv",
        conflicts=f"{paths.fusion()}.conflicts.tsv",
        folder=directory(paths.fusion()),
    log:
        "<logs>/fuse_organs/round-{round}/{labels}/{shard}.log",
    wildcard_constraints:
        labels=pattern(FILLED),
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["fuse"],
        labels=settings.labels,
        shuffle_seed=lambda wildcards: (
            0 if VARIANTS[wildcards.labels].shuffled else None
        ),
        corrections=lambda wildcards: (
            settings.corrections if run.corrected_labels(wildcards) else ""
        ),
        corrected=run.corrected_labels,
    script:
        "../scripts/fuse_organs.py"
