"""Plan a student: its foreground is all that fusion labelled."""

from panorgan.job import job
from panorgan.labels import load_labels
from panorgan.stages.training import plan_network
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    labels_file = snakemake.config["labels"]
    histograms = ShardReader(files.histograms, files.histogram_folders)
    plan_network(
        files.manifest,
        histograms.cases,
        histograms,
        snakemake.params.recipe,
        labels_file=labels_file,
        classes=load_labels(labels_file).values,
        frozen=str(files.get("frozen", "")),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
