"""Plan a student: its foreground is all that fusion labelled."""

from panorgan.config.labels import load_labels
from panorgan.run.job import job
from panorgan.run.layout import beside
from panorgan.run.store import ShardReader
from panorgan.stages.training import plan_network

with job(snakemake):
    files, labels = snakemake.input, snakemake.params.labels
    histograms = ShardReader(files.histograms, files.histogram_folders)
    plan_network(
        files.manifests,
        histograms.cases,
        histograms,
        snakemake.params.recipe,
        labels_file=labels,
        classes=load_labels(labels).values,
        frozen=str(files.get("frozen", "")),
        store=beside(snakemake.params.data, ".store"),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
