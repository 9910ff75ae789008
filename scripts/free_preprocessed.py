"""Remove preprocessed data that no training needs any more."""

from panorgan.run.job import job
from panorgan.stages.cleaning import free_preprocessed

with job(snakemake):
    free_preprocessed(snakemake.params.data)
