"""Write the report, the picture and the summary of a run."""

from panorgan.job import job
from panorgan.report import write_report

with job(snakemake):
    write_report(
        snakemake.params.config,
        dict(snakemake.input.items()),
        report=snakemake.output.report,
        picture=snakemake.output.picture,
        summary=snakemake.output.summary,
    )
