"""Take over the model that makes organ pseudo-labels."""

from panorgan.run.job import job
from panorgan.stages.prediction import import_model

with job(snakemake):
    import_model(snakemake.input.model, snakemake.output.model, snakemake.output.table)
