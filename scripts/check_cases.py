"""Decide which cases are used and write what is annotated in each."""

from panorgan.run.job import job
from panorgan.stages.cases import check_cases

with job(snakemake):
    files, settings = snakemake.input, snakemake.params
    check_cases(
        files.cases,
        files.index,
        files.problems,
        files.index_folders,
        shards=settings.shards,
        labels_file=settings.labels,
        sources_file=settings.sources,
        min_ml=settings.min_ml,
        speck_ml=settings.speck_ml,
        corrections=settings.corrections,
        excluded_names=settings.excluded_names,
        bad_cases=settings.bad_cases,
        parts=settings.parts,
        index_again=settings.index_again,
        parts_again=settings.parts_again,
        **dict(snakemake.output.items()),
    )
