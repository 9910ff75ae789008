# Reads every volume once and decides which cases are used.
# Makes the index, the manifest (what is annotated where) and the preflight page.

if settings.phantom:

    rule write_phantom:
        input:
            cases=ancient(settings.cases),
        output:
            run.phantom_files,
        log:
            text="<logs>/write_phantom.log",
            problems="<logs>/write_phantom.problems.tsv",
        benchmark:
            "<benchmarks>/write_phantom.tsv"
        conda:
            "../envs/panorgan.yaml"
        threads: 2
        resources:
            gpu=0,
            mem_mb=1000,
            runtime=30,
        params:
            phantom=settings.phantom.model_dump(),
            cases=run.digest(*run.shards),
        script:
            "../scripts/write_phantom.py"


rule index_cases:
    input:
        cases=ancient(settings.cases),
        volumes=lambda wildcards: run.volumes(wildcards.shard),
    output:
        table="<results>/cases/index/{shard}.tsv",
        problems="<results>/cases/index/{shard}.problems.tsv",
        folder=directory("<results>/cases/index/{shard}"),
    log:
        text="<logs>/index_cases/{shard}.log",
        problems="<logs>/index_cases/{shard}.problems.tsv",
    benchmark:
        "<benchmarks>/index_cases/{shard}.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=120,
    params:
        version=VERSIONS["index"],
        cases=lambda wildcards: run.digest(wildcards.shard),
        sizes=lambda wildcards: run.sizes(wildcards.shard),
        tables=run.tables_digest(),
        max_repair_mm=settings.manifest.max_repair_mm,
    script:
        "../scripts/index_cases.py"


rule write_manifest:
    input:
        cases=ancient(settings.cases),
        index=expand("<results>/cases/index/{shard}.tsv", shard=run.shards),
        problems=expand("<results>/cases/index/{shard}.problems.tsv", shard=run.shards),
        index_folders=ancient(expand("<results>/cases/index/{shard}", shard=run.shards)),
    output:
        manifest=report(
            "<results>/cases/manifest.tsv",
            caption="captions/manifest.rst",
            category="Cases",
        ),
        excluded="<results>/cases/excluded.tsv",
        suspects="<results>/cases/suspects.tsv",
        corrected="<results>/cases/corrected.tsv",
        repaired="<results>/cases/repaired.tsv",
        labels="<results>/cases/labels.yaml",
    log:
        text="<logs>/write_manifest.log",
        problems="<logs>/write_manifest.problems.tsv",
    benchmark:
        "<benchmarks>/write_manifest.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        cases=lambda wildcards: run.digest(*run.shards),
        tables=run.tables_digest(),
        corrections=run.corrections_digest,
        min_ml=settings.manifest.min_ml,
        speck_ml=settings.manifest.speck_ml,
        excluded_names=settings.selection.exclude,
        bad_cases=settings.bad_cases,
    script:
        "../scripts/write_manifest.py"


rule write_preflight:
    input:
        manifest=rules.write_manifest.output.manifest,
        excluded=rules.write_manifest.output.excluded,
        suspects=rules.write_manifest.output.suspects,
    output:
        page=report(
            "<results>/cases/preflight.html",
            caption="captions/preflight.rst",
            category="Cases",
        ),
    log:
        text="<logs>/write_preflight.log",
        problems="<logs>/write_preflight.problems.tsv",
    benchmark:
        "<benchmarks>/write_preflight.tsv"
    conda:
        "../envs/panorgan.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        config=settings.model_dump(),
    script:
        "../scripts/write_preflight.py"
