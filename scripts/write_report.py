"""Write the report, the picture and the summary of a run."""

from panorgan.report.page import write_report
from panorgan.run.job import job

with job(snakemake):
    write_report(
        snakemake.params.config,
        dict(snakemake.input.items()),
        report=snakemake.output.report,
        picture=snakemake.output.picture,
        summary=snakemake.output.summary,
    )
