"""Score a shard's predictions."""

from panorgan.job import job, shard_output
from panorgan.stages.prediction import score_cases
from panorgan.store import ShardReader

with job(snakemake) as this:
    this.computed = score_cases(
        snakemake.input.manifest,
        ShardReader([snakemake.input.predictions], [snakemake.input.prediction_folder]),
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
        profile=snakemake.params.profile,
        overlap=snakemake.params.overlap,
    )
