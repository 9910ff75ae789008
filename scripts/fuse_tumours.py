"""Fuse a shard's partial labels and tumour pseudo-labels."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.fusion import fuse_tumours

with job(snakemake) as this:
    files, settings = snakemake.input, snakemake.params
    this.computed = fuse_tumours(
        files.manifest,
        ShardReader.of(files.tumours, files.tumour_folders),
        shard_output(snakemake),
        labels_file=settings.labels,
        order=settings.order,
        tumour_value=settings.tumour_value,
        organs=ShardReader.of(files.organs, files.organ_folders),
        decisions=files.decisions[0] if files.decisions else "",
    )
