"""Train a teacher or a student, or go on with it."""

from pathlib import Path

from panorgan.config import Member
from panorgan.job import job, store_of
from panorgan.stages.training import train_network
from panorgan.store import ShardReader

with job(snakemake) as console:
    files = snakemake.input
    model = Path(snakemake.output.model)
    train_network(
        files.manifest,
        files.plans,
        files.dataset,
        ShardReader(files.training, files.training_folders),
        ShardReader(files.validation, files.validation_folders),
        labels_file=snakemake.config["labels"],
        member=Member.parse(snakemake.wildcards.seed),
        marginal=snakemake.params.marginal,
        slot=store_of(model, snakemake.config["run"]),
        model=str(model),
        table=snakemake.output.table,
        notes={"run": snakemake.config["run"], "phantom": snakemake.params.phantom},
        console=console,
    )
