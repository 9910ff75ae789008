"""Collect a split's scores and their means."""

from pathlib import Path

from panorgan.run.job import job
from panorgan.stages.prediction import summarise_scores

with job(snakemake):
    summarise_scores(
        snakemake.input.scores,
        snakemake.input.lesions,
        labels_file=snakemake.params.labels,
        profile=snakemake.params.profile,
        samples=snakemake.params.samples,
        overlap=snakemake.params.overlap,
        sizes_mm=snakemake.params.sizes_mm,
        folder=Path(snakemake.output.summary).parent,
    )
