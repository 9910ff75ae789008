"""Predict a shard's cases with a teacher, a student or a model that was given."""

from panorgan.job import job, shard_output
from panorgan.stages.prediction import WANTED, predict_cases

with job(snakemake):
    predict_cases(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        WANTED[snakemake.params.wanted],
        snakemake.input.model,
        snakemake.input.model_table,
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        translate=snakemake.params.get("translate", False),
        **snakemake.params.prediction,
    )
