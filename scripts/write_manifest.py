"""Decide which cases are used and write what is annotated in each."""

from pathlib import Path

from panorgan.job import job
from panorgan.stages.cases import collect_manifest
from panorgan.tables import write_text

with job(snakemake):
    settings = snakemake.config
    collect_manifest(
        settings["cases"],
        snakemake.input.index,
        snakemake.input.problems,
        snakemake.input.index_folders,
        shards=settings["shards"],
        labels_file=settings["labels"],
        sources_file=settings["sources"],
        min_ml=snakemake.params.min_ml,
        speck_ml=snakemake.params.speck_ml,
        corrections=settings["corrections"] or "",
        excluded_names=snakemake.params.excluded_names,
        bad_cases=snakemake.params.bad_cases,
        manifest=snakemake.output.manifest,
        excluded=snakemake.output.excluded,
        suspects=snakemake.output.suspects,
        corrected=snakemake.output.corrected,
        repaired=snakemake.output.repaired,
    )
    # For those who look at the run later: the config's table may be another one then.
    write_text(snakemake.output.labels, Path(settings["labels"]).read_text())
