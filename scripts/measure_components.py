"""Describe the components of a shard's pseudo-labels, and how stable these are."""

from itertools import zip_longest

from panorgan.job import job, shard_output
from panorgan.stages.gate import Round, measure_components

with job(snakemake):
    files, settings = snakemake.input, snakemake.params
    this, *earlier = [
        Round.of_shard(*places)
        for places in zip_longest(
            files.tumours,
            files.tumour_folders,
            files.get("organs", []),
            files.get("organ_folders", []),
            settings.tumour_values,
        )
    ]
    measure_components(
        files.manifest,
        snakemake.wildcards.shard,
        this,
        earlier[::-1],
        shard_output(snakemake),
        labels_file=snakemake.config["labels"],
        known=settings.known,
        tumour_rows=[files.tumour_components],
        organ_rows=[found] if (found := files.get("organ_components")) else [],
    )
