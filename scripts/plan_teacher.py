"""Plan the teacher: its foreground is tumour."""

from panorgan.config.labels import load_labels
from panorgan.run.job import job
from panorgan.run.layout import beside
from panorgan.run.store import ShardReader
from panorgan.stages.teacher import selected_cases
from panorgan.stages.training import plan_network

with job(snakemake):
    files, labels = snakemake.input, snakemake.params.labels
    plan_network(
        files.manifests,
        selected_cases(files.cases),
        ShardReader(files.histograms, files.histogram_folders),
        snakemake.params.recipe,
        labels_file=labels,
        classes=[load_labels(labels).tumour.value],
        frozen=str(files.get("frozen", "")),
        store=beside(snakemake.params.data, ".store"),
        plans=snakemake.output.plans,
        dataset=snakemake.output.dataset,
    )
