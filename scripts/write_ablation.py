"""Compare students that differ in the labels that they learnt from."""

from panorgan.run.job import job
from panorgan.stages.ablation import write_ablation

with job(snakemake):
    write_ablation(
        {arm: list(snakemake.input[arm]) for arm in snakemake.params.arms},
        split="validation",
        labels_file=snakemake.params.labels,
        samples=snakemake.params.samples,
        seed=0,
        table=snakemake.output.table,
        page=snakemake.output.page,
        details=snakemake.output.details,
    )
