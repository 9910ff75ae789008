"""Plan the teacher: its foreground is tumour."""

from panorgan.job import job
from panorgan.labels import load_labels
from panorgan.stages.teacher import selected_cases
from panorgan.stages.training import plan_network
from panorgan.store import ShardReader

with job(snakemake):
    files = snakemake.input
    labels_file = snakemake.config["labels"]
    plan_network(
        files.manifest,
        selected_cases(files.cases),
        ShardReader(files.histograms, files.histogram_folders),
        snakemake.params.recipe,
        labels_file=labels_file,
        classes=[load_labels(labels_file).tumour.value],
        frozen=str(files.get("frozen", "")),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
