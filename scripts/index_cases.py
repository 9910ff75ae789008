"""Check and describe the volumes of a shard's cases."""

from panorgan.run.job import job, shard_output
from panorgan.stages.cases import index_cases

with job(snakemake) as this:
    this.computed = index_cases(
        snakemake.input.cases,
        snakemake.wildcards.shard,
        snakemake.params.shards,
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
        max_repair_mm=snakemake.params.max_repair_mm,
    )
