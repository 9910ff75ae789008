"""Write the page that says what is in the data and what the run will need."""

from panorgan.job import job
from panorgan.preflight import write_preflight

with job(snakemake):
    essentials = write_preflight(
        snakemake.input.manifest,
        snakemake.input.excluded,
        snakemake.input.suspects,
        teacher=snakemake.params.teacher,
        student=snakemake.params.student,
        run=snakemake.config["run"],
        labels_file=snakemake.config["labels"],
        page=snakemake.output.page,
    )
    print(essentials)
