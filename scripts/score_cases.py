"""Score a shard's predictions."""

from panorgan.job import job, shard_output
from panorgan.stages.prediction import score_cases
from panorgan.store import ShardReader

with job(snakemake):
    score_cases(
        snakemake.input.manifest,
        snakemake.wildcards.shard,
        ShardReader([snakemake.input.predictions], [snakemake.input.prediction_folder]),
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        profile=snakemake.params.profile,
        overlap=snakemake.params.overlap,
    )
