"""Write a shard's partial labels as they are, without pseudo-labels."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_partial

with job(snakemake):
    fuse_partial(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
    )
