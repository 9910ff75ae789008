"""Write the demo's synthetic cases."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

from panorgan.cases.phantom import write_case
from panorgan.cases.table import read_cases
from panorgan.config.labels import load_labels
from panorgan.run.job import job

with job(snakemake):
    labels = load_labels(snakemake.params.labels)
    cases = read_cases(snakemake.input.cases, labels)
    with ProcessPoolExecutor(snakemake.threads) as pool:
        list(pool.map(partial(write_case, **snakemake.params.phantom, labels=labels), cases))
