"""Preprocess a shard's cases for the teacher."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.training import preprocess_cases

with job(snakemake) as this:
    this.computed = preprocess_cases(
        snakemake.input.manifest,
        ShardReader([snakemake.input.truth], [snakemake.input.truth_folder]),
        snakemake.input.plans,
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
    )
