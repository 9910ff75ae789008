"""Collect a split's scores and their means."""

from pathlib import Path

from panorgan.job import job
from panorgan.stages.prediction import summarise_scores

with job(snakemake):
    summarise_scores(
        snakemake.input.manifest,
        snakemake.input.scores,
        snakemake.wildcards.split,
        labels_file=snakemake.config["labels"],
        profile=snakemake.params.profile,
        folder=Path(snakemake.output.summary).parent,
    )
