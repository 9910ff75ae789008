"""What each rule of the workflow does: a function a rule, files in, files out.

The scripts in `scripts/` hand over what Snakemake declares; nothing here imports Snakemake.
"""

VERSIONS = {
    "index": 1,
    "select": 1,
    "preprocess": 2,
    "train": 1,
    "predict": 2,
    "fuse": 1,
    "measure": 1,
    "score": 1,
}
"""A stage's number is raised by hand when its results change: it is part of every stored key."""

LABEL = ".nii.gz"
HISTOGRAMS = ".npz"
"""What follows the case's name in the names of its files."""
