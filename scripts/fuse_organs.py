"""Fill a shard's stage-1 labels with organ pseudo-labels."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.fusion import fuse_organs

with job(snakemake) as this:
    files, settings = snakemake.input, snakemake.params
    this.computed = fuse_organs(
        files.manifest,
        ShardReader([files.first], [files.first_folder]),
        shard_output(snakemake),
        labels_file=settings.labels,
        organs=ShardReader.of(files.organs, files.organ_folders),
        decisions=files.decisions[0] if files.decisions else "",
        shuffle_seed=settings.shuffle_seed,
        corrected=settings.corrected,
        corrections=settings.corrections,
    )
