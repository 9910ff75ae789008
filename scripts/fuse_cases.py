"""Fuse a shard's labels with pseudo-labels in one pass."""

from panorgan.job import job, shard_output
from panorgan.stages.fusion import fuse_cases
from panorgan.store import ShardReader

with job(snakemake):
    files, settings = snakemake.input, snakemake.params
    organs = files.get("organs")
    fuse_cases(
        files.manifest,
        snakemake.wildcards.shard,
        ShardReader([files.tumours], [files.tumour_folder]),
        settings.tumour_value,
        ShardReader([organs], [files.organ_folder]) if organs else None,
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        order=settings.order,
        decisions=next(iter(files.decisions), ""),
        shuffle_seed=settings.shuffle_seed,
        corrections=snakemake.config["corrections"] or "",
    )
