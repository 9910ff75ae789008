"""Score the teacher's tumours on the validation cases."""

from pathlib import Path

from panorgan.run.job import job
from panorgan.run.store import ShardReader
from panorgan.stages.teacher import score_teacher

with job(snakemake):
    files = snakemake.input
    score_teacher(
        files.manifests,
        ShardReader(files.truth, files.truth_folders),
        ShardReader(files.predictions, files.prediction_folders),
        labels_file=snakemake.params.labels,
        profile=snakemake.params.profile,
        samples=snakemake.params.samples,
        overlap=snakemake.params.overlap,
        sizes_mm=snakemake.params.sizes_mm,
        folder=Path(snakemake.output.summary).parent,
    )
