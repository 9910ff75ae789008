"""Preprocess a shard's cases for a student: fused labels, or the validation cases' own."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.training import preprocess_cases

with job(snakemake) as this:
    fused = snakemake.input.get("fused")
    this.computed = preprocess_cases(
        snakemake.input.manifest,
        ShardReader([fused], [snakemake.input.fused_folder]) if fused else None,
        snakemake.input.plans,
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
    )
