"""Score a shard's predictions."""

from panorgan.run.job import job, shard_output
from panorgan.run.store import ShardReader
from panorgan.stages.prediction import score_cases

with job(snakemake) as this:
    this.computed = score_cases(
        snakemake.input.manifest,
        ShardReader([snakemake.input.predictions], [snakemake.input.prediction_folder]),
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
        profile=snakemake.params.profile,
        overlap=snakemake.params.overlap,
    )
