"""What the rules of the workflow do: files in, files out.

The scripts in `scripts/` hand over what Snakemake declares; nothing here imports Snakemake.
"""

VERSIONS = {
    "phantom": 2,
    "index": 3,
    "select": 2,
    "preprocess": 2,
    "train": 3,
    "predict": 3,
    "components": 1,
    "import": 1,
    "fuse": 3,
    "judge": 1,
    "measure": 1,
    "score": 2,
    "summarise": 2,
    "report": 2,
}
"""A stage's number is raised by hand when its results change: it is part of every stored key."""

LABEL = ".nii.gz"
SOURCE = "_source.nii.gz"
AUTOMATIC = "_automatic.nii.gz"
HISTOGRAMS = ".npz"
"""What follows the case's name in the names of its files."""

UNKNOWNS = "unknown"
"""Column of labels to learn: values of the classes of which a case's label says nothing."""
CLASSES = "classes"
"""Column of organ pseudo-labels: values of the classes that their model knows."""
LEFT_OUT = "left_out_fold"
"""In a model's card: the fold whose cases it did not train on, and of how many folds."""
