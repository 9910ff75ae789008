"""Choose a shard's teacher cases and write their labels."""

from panorgan.run.job import job, shard_output
from panorgan.stages.teacher import select_tumour_cases

with job(snakemake) as this:
    this.computed = select_tumour_cases(
        snakemake.input.manifest,
        shard_output(snakemake),
        labels_file=snakemake.params.labels,
        min_tumour_ml=snakemake.params.min_tumour_ml,
        exclude=snakemake.params.exclude,
        negatives=snakemake.params.negatives,
    )
