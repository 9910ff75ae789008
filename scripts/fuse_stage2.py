"""Fill a shard's stage-1 labels with organ pseudo-labels."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_organs
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    organs = files.get("organs")
    fuse_organs(
        files.manifest,
        snakemake.wildcards.shard,
        ShardReader([files.stage1], [files.stage1_folder]),
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        predicted=ShardReader([organs], [files.organ_folder]) if organs else None,
        corrections=snakemake.config["corrections"] or "",
    )
