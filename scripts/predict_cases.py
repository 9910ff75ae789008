"""Predict a shard's cases with a teacher, students or a model that was given."""

from panorgan.config.settings import Member
from panorgan.io.tables import read_table
from panorgan.run.job import job, shard_output
from panorgan.stages.prediction import predict_cases

with job(snakemake) as this:
    files, settings = snakemake.input, snakemake.params
    taught = files.get("taught")
    this.computed = predict_cases(
        files.manifest,
        settings.wanted,
        [
            (Member.parse(name), model, table)
            for name, model, table in zip(
                settings.members, files.models, files.model_tables, strict=True
            )
        ],
        shard_output(snakemake),
        labels_file=settings.labels,
        translate=settings.get("translate", False),
        components=bool(snakemake.output.get("components")),
        begin=this.claim_gpu,
        seen=[row["case"] for row in read_table(taught) if row["status"] == "ok"] if taught else [],
        **settings.prediction,
    )
