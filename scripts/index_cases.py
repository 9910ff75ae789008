"""Check and describe the volumes of a shard's cases."""

from panorgan.cases import read_cases, shard_of
from panorgan.job import job, shard_output
from panorgan.labels import load_labels
from panorgan.stages.cases import index_cases

with job(snakemake):
    settings = snakemake.config
    cases = [
        case
        for case in read_cases(settings["cases"], load_labels(settings["labels"]))
        if shard_of(case.case, case.split, **settings["shards"]) == snakemake.wildcards.shard
    ]
    index_cases(cases, settings["labels"], shard_output(snakemake), snakemake.params.max_repair_mm)
