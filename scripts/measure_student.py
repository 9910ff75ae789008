"""Histogram the intensities of a shard's fused classes."""

from panorgan.job import job, shard_output
from panorgan.stages.training import measure_intensities
from panorgan.store import ShardReader

with job(snakemake) as this:
    this.computed = measure_intensities(
        snakemake.input.manifest,
        ShardReader([snakemake.input.fused], [snakemake.input.fused_folder]),
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
    )
