"""Fuse a shard's partial labels and tumour pseudo-labels."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_tumours
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    organs = files.get("organs")
    fuse_tumours(
        files.manifest,
        snakemake.wildcards.shard,
        ShardReader([files.tumours], [files.tumour_folder]),
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        order=snakemake.params.order,
        organs=ShardReader([organs], [files.organ_folder]) if organs else None,
    )
