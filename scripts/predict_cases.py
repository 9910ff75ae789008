"""Predict a shard's cases with a teacher or a student."""

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
        **snakemake.params.prediction,
    )
