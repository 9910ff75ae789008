"""Preprocess a shard's cases for the teacher."""

from panorgan.job import job, shard_output
from panorgan.stages.training import preprocess_cases
from panorgan.store import ShardReader

with job(snakemake) as this:
    this.computed = preprocess_cases(
        snakemake.input.manifest,
        ShardReader([snakemake.input.truth], [snakemake.input.truth_folder]),
        snakemake.input.plans,
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
    )
