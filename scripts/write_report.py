"""Write the report, the picture and the summary of a run."""

from panorgan.report.page import write_report
from panorgan.run.job import job
from panorgan.run.layout import Layout

with job(snakemake):
    config = snakemake.params.config
    write_report(
        config,
        Layout(config["run"]),
        snakemake.params.shards,
        dict(snakemake.input.items()),
        report=snakemake.output.report,
        picture=snakemake.output.picture,
        summary=snakemake.output.summary,
    )
