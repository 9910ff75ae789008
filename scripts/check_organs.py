"""Stop where stage 2 would teach that organs are not there."""

from panorgan.run.job import job
from panorgan.stages.pseudo_labels import check_organs

with job(snakemake):
    check_organs(
        snakemake.input.manifest,
        snakemake.params.organs,
        labels_file=snakemake.params.labels,
        out=snakemake.output[0],
    )
