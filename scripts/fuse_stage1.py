"""Fuse a shard's partial labels and tumour pseudo-labels."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_tumours
from panorgan.store import ShardReader

with job(snakemake):
    fuse_tumours(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        ShardReader([snakemake.input.tumours], [snakemake.input.tumour_folder]),
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
    )
