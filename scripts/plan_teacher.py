"""Plan the teacher: its foreground is tumour."""

from pathlib import Path

from panorgan.job import job, store_of
from panorgan.labels import load_labels
from panorgan.stages.teacher import selected_cases
from panorgan.stages.training import plan_network
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    config = snakemake.config
    plan_network(
        files.manifest,
        selected_cases(files.cases),
        ShardReader(files.histograms, files.histogram_folders),
        snakemake.params.recipe,
        labels_file=config["labels"],
        classes=[load_labels(config["labels"]).tumour.value],
        frozen=str(files.get("frozen", "")),
        store=store_of(Path(snakemake.output.plans).with_name("preprocessed"), config["run"]),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
