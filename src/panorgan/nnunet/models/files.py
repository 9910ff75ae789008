"""Trained models as plain values: panorgan's own folders, and those of stock nnU-Net 2.

Importing this imports neither torch nor nnU-Net.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from panorgan.nnunet.models.folders import (
    ALL,
    CARD,
    DATASET,
    OURS,
    PLANS,
    VERSION_1,
    WEIGHTS,
    ModelFiles,
    check_class_names,
    checksum_of,
    find_model,
    read_json,
)
from panorgan.nnunet.models.shapes import tensor_shapes
from panorgan.nnunet.models.version2 import read_nnunet2
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problems

CURE = "copy the whole model folder again, or train the model again"

__all__ = ["ModelFiles", "read_model"]


def read_model(folder: str | Path, folds: Sequence[str] | None = None) -> ModelFiles:
    """Read a trained model.

    Parameters
    ----------
    folder
        A model folder of panorgan; or one of stock nnU-Net 2 (plans.json, dataset.json,
        fold_X/checkpoint_final.pth), a fold's folder in it, or a folder that holds exactly one.
    folds
        Names of a stock model's folds. None: as stock does, all numbered ones that are finished;
        ``all`` if it is the only one.

    Returns
    -------
    ModelFiles
        Its tensors are compared with its plan and, of a model of ours, with its card. A stock
        model that panorgan exported, and that was not trained since, is panorgan's again.

    Raises
    ------
    Problems
        If the folder or a file of it is missing, damaged, or of another model, or the model is one
        that panorgan cannot run.
    """
    folder = Path(folder)
    found = find_model(folder)
    if found.kind == OURS:
        if found.folder != folder:
            raise Problems.one("is no model folder", f"is it {found.folder}?", file=folder)
        if folds is not None:
            cause = "is a model of panorgan, which has one set of weights"
            raise Problems.one(cause, "leave the folds out", file=folder)
        return _read_ours(folder)
    if found.kind == VERSION_1:
        conversion = f"`panorgan convert {folder} -o NEW` first"
        raise Problems.one("is a model of nnU-Net 1", conversion, file=folder)
    found.check_finished()
    if folds is None:
        chosen = [fold for fold in found.checkpoints if fold != ALL] or [ALL]
    else:
        chosen = [found.named(fold) for fold in dict.fromkeys(folds)]
    return read_nnunet2(found.folder, {fold: found.checkpoints[fold] for fold in chosen})


def _read_ours(folder: Path) -> ModelFiles:
    """Read a model folder of panorgan's and compare its weights with its card and plan."""
    for name in (PLANS, DATASET, CARD, WEIGHTS):
        if not (folder / name).is_file():
            if inside := sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}")):
                raise Problems.one("is no model folder", f"is it {inside[0]}?", file=folder)
            raise Problems.one(f"{name} is missing in this model folder", CURE, file=folder)
    plan, dataset_json, card = (read_json(folder / name, CURE) for name in (PLANS, DATASET, CARD))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        cause = f"the weights cannot be read ({error})"
        raise Problems.one(cause, CURE, file=folder / WEIGHTS) from None
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise Problems.one(f"its weights are not all numbers ({name})", CURE, file=folder)
    if checksum_of(tensors) != card.get("checksum"):
        cause = "the weights are not those that the model's card describes"
        raise Problems.one(cause, CURE, file=folder / WEIGHTS)
    # A model that is to be small keeps two bytes each.
    tensors = {
        name: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        for name, array in tensors.items()
    }
    try:
        outputs = {value for name, value in dataset_json["labels"].items() if name != "ignore"}
        channels = len(dataset_json["channel_names"])
        architecture = configuration_of(plan)[1]["architecture"]
        shapes = tensor_shapes(architecture, channels, len(outputs))
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("tensors of another network")
        check_class_names(plan["panorgan"]["classes"], folder)
    except (AttributeError, LookupError, TypeError, ValueError):
        cause = f"{PLANS} does not describe the network that these weights belong to"
        raise Problems.one(cause, CURE, file=folder) from None
    return ModelFiles(plan, dataset_json, card, (tensors,))
