# Reads every volume once and decides which cases are used.
# Makes the index, the manifest (what is annotated where), each shard's part of it, and the
# preflight page. All shards meet in `check_cases`: nothing below runs before it has found nothing.

if settings.phantom:

    rule write_phantom:
        input:
            cases=ancient(settings.cases),
        output:
            run.phantom_files,
        log:
            "<logs>/write_phantom.log",
        conda:
            "../envs/panorgan.yaml"
        threads: 2
        resources:
            mem_mb=run.memory,
            runtime=run.runtime,
        params:
            version=VERSIONS["phantom"],
            phantom=settings.phantom.model_dump(),
            cases=run.digest(*run.shards),
            labels=settings.labels,
        script:
            "../scripts/write_phantom.py"


rule index_cases:
    input:
        cases=ancient(settings.cases),
        volumes=lambda wildcards: run.written(wildcards.shard),
    output:
        table=f"{paths.index()}.tsv",
        problems=f"{paths.index()}.problems.tsv",
        folder=directory(paths.index()),
    log:
        "<logs>/index_cases/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        version=VERSIONS["index"],
        cases=lambda wildcards: run.digest(wildcards.shard),
        volumes=lambda wildcards: run.stamps(wildcards.shard),
        again=lambda wildcards: run.asked(paths.index(wildcards.shard)),
        shards=dict(settings.shards),
        labels=settings.labels,
        classes=run.classes,
        max_repair_mm=settings.manifest.max_repair_mm,
    script:
        "../scripts/index_cases.py"


rule check_cases:
    input:
        cases=ancient(settings.cases),
        index=run.each(paths.index(), run.shards, ".tsv"),
        problems=run.each(paths.index(), run.shards, ".problems.tsv"),
        index_folders=ancient(run.each(paths.index(), run.shards)),
    output:
        manifest=report(
            paths.case_list, caption="captions/manifest.rst", category="Cases"
        ),
        excluded=paths.excluded,
        suspects=paths.suspects,
        corrected=paths.corrected,
        repaired=paths.repaired,
        class_table=paths.class_table,
    log:
        "<logs>/check_cases.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        table=lambda wildcards: run.digest(*run.shards),
        shards=dict(settings.shards),
        parts={shard: paths.manifest(shard) for shard in run.shards},
        index_again=[paths.again(paths.index(shard)) for shard in run.shards],
        parts_again=[paths.again(paths.manifest(shard)) for shard in run.shards],
        labels=settings.labels,
        classes=run.classes,
        sources=settings.sources,
        rules=run.sources,
        corrections=settings.corrections or "",
        corrected=lambda wildcards: run.corrected_states(*run.shards),
        min_ml=settings.manifest.min_ml,
        speck_ml=settings.manifest.speck_ml,
        excluded_names=settings.selection.exclude,
        bad_cases=settings.bad_cases,
    script:
        "../scripts/check_cases.py"


# Stops a run without organ pseudo-labels before anything trains, once the page can be looked at.
rule check_organs:
    input:
        manifest=paths.case_list,
        page=ancient(paths.preflight),
    output:
        paths.organs_checked,
    log:
        "<logs>/check_organs.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        organs=settings.pseudo_labels.organs,
        labels=settings.labels,
        classes=run.classes,
    script:
        "../scripts/check_organs.py"


rule deal_cases:
    input:
        index=f"{paths.index()}.tsv",
        # What another shard's cases changed in it is none of this one's business.
        manifest=ancient(paths.case_list),
        organs=ancient([paths.organs_checked] if run.learns_filled else []),
    output:
        part=paths.manifest(),
    log:
        "<logs>/deal_cases/{shard}.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        labels=settings.labels,
        classes=run.classes,
        rules=run.sources,
        corrected=lambda wildcards: run.corrected_states(wildcards.shard),
        min_ml=settings.manifest.min_ml,
        again=lambda wildcards: run.asked(paths.manifest(wildcards.shard)),
    script:
        "../scripts/deal_cases.py"


rule write_preflight:
    input:
        manifest=paths.case_list,
        excluded=paths.excluded,
        suspects=paths.suspects,
    output:
        page=report(paths.preflight, caption="captions/preflight.rst", category="Cases"),
        config=paths.config,
    log:
        "<logs>/write_preflight.log",
    conda:
        "../envs/panorgan.yaml"
    resources:
        mem_mb=run.memory,
        runtime=run.runtime,
    params:
        config=settings.model_dump(),
    script:
        "../scripts/write_preflight.py"
