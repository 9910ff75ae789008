"""Plan a student: its foreground is all that fusion labelled."""

from pathlib import Path

from panorgan.job import job, store_of
from panorgan.labels import load_labels
from panorgan.stages.training import plan_network
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    config = snakemake.config
    histograms = ShardReader(files.histograms, files.histogram_folders)
    plan_network(
        files.manifest,
        histograms.cases,
        histograms,
        snakemake.params.recipe,
        labels_file=config["labels"],
        classes=load_labels(config["labels"]).values,
        frozen=str(files.get("frozen", "")),
        store=store_of(Path(snakemake.output.plans).with_name("preprocessed"), config["run"]),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
