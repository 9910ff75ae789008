"""Write the page that says what is in the data and what the run will need."""

from panorgan.config.settings import load_config
from panorgan.report.preflight import write_preflight
from panorgan.run.job import job

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
