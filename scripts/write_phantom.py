"""Write the demo's synthetic cases."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

from panorgan.cases import read_cases
from panorgan.job import job
from panorgan.labels import load_labels
from panorgan.phantom import write_case

with job(snakemake):
    cases = read_cases(snakemake.input.cases, load_labels(snakemake.params.labels))
    with ProcessPoolExecutor(snakemake.threads) as pool:
        list(pool.map(partial(write_case, **snakemake.params.phantom), cases))
