"""The memory and the time that each rule's job asks a scheduler for.

Both follow from the sizes of the volumes and from how many of them a job has. Figures are rounded
up from runs on small volumes and from what large ones are known to take; all rules on large ones
have not been measured yet: `workflow_tests/benchmarks/needs.py` does that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from panorgan.config.settings import Recipe
from panorgan.io.resources import (
    PREPROCESSING_BYTES,
    PROCESS_BYTES,
    preprocessing_memory,
)

MB = 1e6

MEMORY_MARGIN = 1.5
"""Asked for, of the figures below."""

TIME_MARGIN = 6
"""The same: other processors, file systems, networks and neighbours."""

SNAKEMAKE_MB = 500
"""Of the two Snakemakes that a scheduler's job starts around a script."""

LEAST_MINUTES = 20

LONGEST_MINUTES = 7 * 24 * 60
"""No training asks for more: it goes on from its checkpoints."""

STEP_S = 2.0
"""Of a training step in the time that is asked for: a GPU takes a fraction of it."""

TRAINING_MB = 3000
"""Of a training without its network: libraries, a GPU's too."""

LOADER_MB = 700
"""Of each process that loads patches."""

MAPS = 15
"""Times that a step on a CPU holds all feature maps: 7 to 15 by docs/benchmarks.md (Estimates)."""


@dataclass(frozen=True)
class Need:
    """What a job of a rule takes.

    Attributes
    ----------
    mb
        Memory without volumes.
    voxel
        Bytes more a voxel of its largest volume.
    case_s
        Seconds a case.
    megavoxel_s
        Seconds more for each million voxels of it.
    grid
        Instead: as preprocessing, which the network's grid decides on.
    """

    mb: float
    voxel: float = 0.0
    case_s: float = 0.05
    megavoxel_s: float = 0.0
    grid: bool = False


PREDICTING = Need(mb=2500, voxel=6, case_s=5, megavoxel_s=2.0)
"""On a CPU; a GPU takes less time, and its libraries more memory."""

NEEDS = {
    "write_phantom": Need(mb=300, case_s=1),
    "index_cases": Need(mb=250, voxel=6, case_s=0.1, megavoxel_s=0.15),
    "check_cases": Need(mb=300),
    "check_organs": Need(mb=200),
    "deal_cases": Need(mb=200),
    "write_preflight": Need(mb=400, voxel=6),
    "free_preprocessed": Need(mb=200),
    "select_tumour_cases": Need(mb=250, voxel=3, megavoxel_s=0.05),
    "plan_teacher": Need(mb=400),
    "preprocess_teacher": Need(mb=300, case_s=0.2, megavoxel_s=0.4, grid=True),
    "score_teacher": Need(mb=400, voxel=8, megavoxel_s=0.2),
    "import_organ_model": Need(mb=3000, case_s=10),
    "measure_components": Need(mb=300, voxel=8, megavoxel_s=0.2),
    "measure_known_components": Need(mb=300, voxel=8, megavoxel_s=0.2),
    "judge_components": Need(mb=400),
    "fuse_tumours": Need(mb=250, voxel=3, megavoxel_s=0.1),
    "fuse_organs": Need(mb=250, voxel=3, megavoxel_s=0.1),
    "measure_student": Need(mb=300, voxel=8, megavoxel_s=0.2),
    "plan_student": Need(mb=400),
    "preprocess_student": Need(mb=300, case_s=0.2, megavoxel_s=0.4, grid=True),
    "score_cases": Need(mb=300, voxel=8, megavoxel_s=0.2),
    "summarise_scores": Need(mb=400),
    "write_ablation": Need(mb=500),
    "write_report": Need(mb=500, voxel=8),
    "predict_tumours": PREDICTING,
    "predict_validation_tumours": PREDICTING,
    "predict_known_tumours": PREDICTING,
    "predict_organs": PREDICTING,
    "relabel_cases": PREDICTING,
    "predict_cases": PREDICTING,
}
"""By rule; those of trainings follow from their recipe."""

TRAININGS = ("train_teacher", "train_student")

CT_VOXEL_BYTES = 2


@dataclass(frozen=True)
class Size:
    """Of an image: voxels and mm (z, y, x); while only a length is known, that and nothing."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] = ()

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)


def memory_mb(rule: str, sizes: Sequence[Size], target: Sequence[float]) -> int:
    """Memory that a job asks for at its first try.

    Parameters
    ----------
    rule
        Of `NEEDS`.
    sizes
        Of its volumes.
    target
        Spacing in mm of the network's grid, (z, y, x) or (y, x), for preprocessing.
    """
    need = NEEDS[rule]
    if need.grid:
        volumes = max((_on_grid(size, target) for size in sizes), default=0.0)
    else:
        volumes = need.voxel * max((size.voxels for size in sizes), default=0)
    return _rounded(need.mb + volumes / MB)


def _on_grid(size: Size, target: Sequence[float]) -> float:
    """Bytes to preprocess an image, beyond a process's own; of unknown spacing: as it is."""
    if size.spacing:
        return preprocessing_memory(size.shape, size.spacing, target) - PROCESS_BYTES
    return sum(PREPROCESSING_BYTES) * size.voxels


def minutes(rule: str, sizes: Sequence[Size]) -> int:
    """Time that a job asks for.

    Parameters
    ----------
    rule
        Of `NEEDS`.
    sizes
        Of its volumes.
    """
    need = NEEDS[rule]
    voxels = sum(size.voxels for size in sizes)
    seconds = need.case_s * len(sizes) + need.megavoxel_s * voxels / 1e6
    return LEAST_MINUTES + math.ceil(TIME_MARGIN * seconds / 60)


def training_memory_mb(recipe: Recipe) -> int:
    """Memory that a training asks for at its first try, with a GPU or without."""
    voxels, maps = float(math.prod(recipe.patch_size)), 0.0
    stages = zip(recipe.network.features, recipe.network.strides, strict=True)
    for number, (features, stride) in enumerate(stages, 1):
        voxels /= math.prod(stride)
        # Of the encoder and, but for the lowest stage, of the decoder.
        maps += features * voxels * (1 if number == len(recipe.network.features) else 2)
    network = MAPS * recipe.batch_size * maps * 4 / MB
    return _rounded(TRAINING_MB + LOADER_MB * recipe.training.workers + network)


def training_minutes(recipe: Recipe) -> int:
    """Time that a training asks for."""
    steps = recipe.training.epochs * recipe.training.iterations
    return min(LEAST_MINUTES + math.ceil(steps * STEP_S / 60), LONGEST_MINUTES)


def _rounded(mb: float) -> int:
    """With the margin and all that is beside the script, in hundreds."""
    return math.ceil((MEMORY_MARGIN * mb + SNAKEMAKE_MB) / 100) * 100
