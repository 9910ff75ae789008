"""Take a shard's part of the manifest."""

from panorgan.run.job import job
from panorgan.stages.cases import deal_cases

with job(snakemake):
    deal_cases(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        labels_file=snakemake.params.labels,
        part=snakemake.output.part,
    )
