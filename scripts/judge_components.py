"""Decide what of a round's pseudo-labels is trusted."""

from panorgan.run.job import job
from panorgan.stages.judging import judge_components

with job(snakemake):
    files = snakemake.input
    judge_components(
        files.manifests,
        files.components,
        files.cases,
        files.known,
        files.known_cases,
        labels_file=snakemake.params.labels,
        settings=snakemake.params.gate,
        origin=snakemake.wildcards.origin,
        negatives=snakemake.params.negatives,
        decisions=snakemake.output.decisions,
        case_table=snakemake.output.cases,
        summary=snakemake.output.summary,
    )
