"""Describe the components of a shard's pseudo-labels, and how stable these are."""

from itertools import zip_longest

from panorgan.run.job import job, shard_output
from panorgan.stages.components import Round, measure_components

with job(snakemake) as this:
    files, settings = snakemake.input, snakemake.params
    judged, *earlier = [
        Round.of_shard(*places)
        for places in zip_longest(
            files.tumours,
            files.tumour_folders,
            files.get("organs", []),
            files.get("organ_folders", []),
            settings.tumour_values,
        )
    ]
    this.computed = measure_components(
        files.manifest,
        judged,
        earlier[::-1],
        shard_output(snakemake),
        labels_file=settings.labels,
        known=settings.known,
        tumour_rows=files.tumour_components,
        organ_rows=files.get("organ_components", []),
    )
