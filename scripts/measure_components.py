"""Complete a shard's components of pseudo-labels: where each lies, and how stable the labels are."""

from panorgan.job import job, shard_output
from panorgan.stages.gate import measure_components
from panorgan.store import ShardReader


def reader(name: str, folder: str) -> ShardReader | None:
    table = snakemake.input.get(name)
    return ShardReader([table], [snakemake.input[folder]]) if table else None


with job(snakemake):
    print("to be connected")
