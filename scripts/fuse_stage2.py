"""Fill a shard's stage-1 labels with organ pseudo-labels."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_organs
from panorgan.store import ShardReader

with job(snakemake):
    fuse_organs(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        ShardReader([snakemake.input.stage1], [snakemake.input.stage1_folder]),
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
    )
