"""Train a teacher or a student, or go on with it."""

from panorgan.config.settings import Member
from panorgan.run.job import job
from panorgan.run.layout import beside
from panorgan.run.store import ShardReader
from panorgan.stages.training import train_network

with job(snakemake) as this:
    files = snakemake.input
    this.computed = train_network(
        files.manifests,
        files.plans,
        files.dataset,
        ShardReader(files.training, files.training_folders),
        ShardReader(files.validation, files.validation_folders),
        labels_file=snakemake.params.labels,
        member=Member.parse(snakemake.wildcards.seed),
        marginal=snakemake.params.marginal,
        slot=beside(snakemake.output.model, ".store"),
        model=snakemake.output.model,
        table=snakemake.output.table,
        notes={"run": snakemake.params.run, "phantom": snakemake.params.phantom},
        console=this.console,
        begin=this.begin_in,
        scratch=snakemake.resources.get("scratch", ""),
    )
