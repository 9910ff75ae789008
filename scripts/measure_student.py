"""Histogram the intensities of a shard's fused classes."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.training import measure_intensities

with job(snakemake) as this:
    this.computed = measure_intensities(
        snakemake.input.manifest,
        ShardReader([snakemake.input.fused], [snakemake.input.fused_folder]),
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
    )
