"""Write the page that says what is in the data and what the run will need."""

from panorgan.config import load_config
from panorgan.job import job
from panorgan.preflight import write_preflight

with job(snakemake):
    essentials = write_preflight(
        snakemake.input.manifest,
        snakemake.input.excluded,
        snakemake.input.suspects,
        config=load_config(snakemake.params.config),
        page=snakemake.output.page,
        config_file=snakemake.output.config,
    )
    print(essentials)
