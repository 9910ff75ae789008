#!/usr/bin/env bash
# Run by `snakemake --sdm conda` in the environment that it has just made, from the workflow's folder.
set -euo pipefail
python -m pip install --no-deps --no-build-isolation --editable .
