"""Models of stock nnU-Net 2, read without torch and without nnU-Net."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.nnunet.models.checkpoints import read_checkpoint
from panorgan.nnunet.models.configurations import resolve
from panorgan.nnunet.models.exported import from_plain
from panorgan.nnunet.models.folders import (
    CARD,
    DATASET,
    PLANS,
    VERSION_2,
    ModelFiles,
    card_of,
    check_class_names,
    read_json,
)
from panorgan.nnunet.models.pickles import DAMAGED, damage
from panorgan.nnunet.models.shapes import tensor_shapes
from panorgan.nnunet.normalisation import SCHEMES
from panorgan.nnunet.plans import ORIENTATION, STORED
from panorgan.problems import Problem, Problems, shown

TRAINER = "nnUNetTrainer"
NOT_ITS = "is not what nnU-Net 2 writes"
UNUSABLE = "panorgan cannot use it"
RESAMPLINGS = (
    "resample_data_or_seg_to_shape",
    "resample_torch_simple",
    "resample_torch_fornnunet",
    "no_resampling_hack",
)
ORIENTATIONS = {
    "SimpleITKIO": STORED,
    "NibabelIO": STORED,
    "SimpleITKIOWithReorient": ORIENTATION,
    "NibabelIOWithReorient": ORIENTATION,
}
"""In which order a network sees the voxels, by the reader that its plan names."""


def read_nnunet2(
    folder: Path, checkpoints: Mapping[str, Path], classes: Sequence[str] | None = None
) -> ModelFiles:
    """A trained model of nnU-Net 2 with its own network.

    One that panorgan exported of its small network, and that was not trained since, is that
    network again.

    Parameters
    ----------
    folder
        Holds plans.json and dataset.json.
    checkpoints
        The checkpoint_final.pth of each fold that is to be read, by the fold's name.
    classes
        Names of the outputs 1, 2, …; None takes those of dataset.json.

    Raises
    ------
    Problems
        If a file is missing or damaged, or the model is none that we can run.
    """
    with damage(folder):
        return _read(folder, checkpoints, classes)


class Unusable(Problems):
    """A model of nnU-Net 2 that is whole, but that panorgan cannot run.

    Attributes
    ----------
    files : ModelFiles or None
        What is known of it; labels may be regions, and the network one that is unknown here.
    """

    def __init__(self, problems: Iterable[Problem], files: ModelFiles | None = None):
        super().__init__(problems)
        self.files = files


def _read(
    folder: Path, checkpoints: Mapping[str, Path], classes: Sequence[str] | None
) -> ModelFiles:
    plan, dataset_json = (read_json(folder / name, DAMAGED, NOT_ITS) for name in (PLANS, DATASET))
    folds = tuple(checkpoints)
    saved = [read_checkpoint(path, "network_weights") for path in checkpoints.values()]
    tensors = tuple(
        _first_names(fold["network_weights"], path)
        for fold, path in zip(saved, checkpoints.values(), strict=True)
    )
    trainer = shown(str(saved[0]["trainer_name"]))
    which = {"fold": folds[0]} if len(folds) == 1 else {"folds": list(folds)}
    source = {
        "converted_from": {"format": VERSION_2, "trainer": trainer, **which},
        "epochs": min(int(fold["current_epoch"]) for fold in saved),
    }
    name = _one_configuration(saved, checkpoints)
    if len(folds) == 1 and (own := _as_exported(folder, plan, dataset_json, tensors[0], source)):
        if classes is not None:
            cause = "is an exported model of panorgan, which names its classes"
            raise Problems.one(cause, "leave out --classes", file=folder)
        check_class_names(own.plan["panorgan"]["classes"], folder)
        return own
    configuration = resolve(plan, name)
    found = _obstacles(plan, configuration, dataset_json) or _of_another_network(
        configuration, dataset_json, tensors
    )
    names = _class_names(dataset_json)
    if classes is not None and not found:
        if len(classes) != len(names):
            cure = "name all of them in the order of their values"
            raise Problems.one(f"has {len(names)} classes, not {len(classes)}", cure, file=folder)
        names = list(classes)
    if not found:
        check_class_names(names, folder)
    plan = _plan(plan, name, configuration, names)
    notes = []
    if not re.match(rf"{TRAINER}(_|[A-Z\d]|$)", trainer):
        notes.append(f"trained by {trainer}: right only if that builds the network of its plan")
    files = ModelFiles(
        plan,
        _dataset_json(dataset_json, names),
        card_of(plan, tensors) | source,
        tensors,
        folds,
        tuple(notes),
    )
    if found:
        raise Unusable((Problem("", str(folder), cause, UNUSABLE) for cause in found), files)
    return files


def other_network(error: Exception) -> str:
    """What is said if a plan's network does not take its weights."""
    reason = " ".join(str(error).split())[:160]
    return f"its plan does not describe a network of its weights that is known here ({reason})"


def _obstacles(
    plan: Mapping[str, Any], configuration: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> list[str]:
    """Why panorgan cannot run what a plan and a dataset.json of nnU-Net's say."""
    found = []
    if configuration.get("previous_stage"):
        found.append("is the second stage of a cascade")
    if (name := configuration["preprocessor_name"]) != "DefaultPreprocessor":
        found.append(f"was preprocessed by {name}, which is unknown here")
    if (scheme := configuration["normalization_schemes"][0]) not in SCHEMES:
        found.append(f"normalises by {scheme}, which is unknown here")
    resamplings = {configuration[f"resampling_fn_{what}"]: None for what in ("data", "seg")}
    found += [
        f"resamples by {function}, which is unknown here"
        for function in resamplings
        if function not in RESAMPLINGS
    ]
    if (reader := plan["image_reader_writer"]) not in ORIENTATIONS:
        found.append(f"reads images by {reader}: known are {', '.join(ORIENTATIONS)}")
    if (manager := plan.get("label_manager", "LabelManager")) != "LabelManager":
        found.append(f"its labels are those of {manager}, which is unknown here")
    if len(channels := _channels(dataset_json)) != 1:
        found.append(f"takes {len(channels)} images a case, not one")
    labels = _labels(dataset_json)
    if has_regions(dataset_json):
        found.append("its labels are regions, which may overlap")
    elif sorted(map(int, labels.values())) != list(range(len(labels))):
        values = ", ".join(str(value) for value in sorted(map(int, labels.values())))
        found.append(f"its label values are {values}")
    return found


# ---------------------------------------------------------------------------------------------
# Weights


def _first_names(state: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The tensors, each under one name, as float32 where they are no integers.

    A plain block names its layers twice, and a decoder its encoder.
    """
    names = {name: re.sub(r"^(module\.|_orig_mod\.)+", "", name) for name in state}
    first = {
        names[name]: tensor
        for name, tensor in state.items()
        if not re.search(r"^decoder\.encoder\.|\.all_modules\.", names[name])
    }
    for tensor in first.values():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise Problems.one("its weights are not all numbers", DAMAGED, file=path)
    return {
        name: tensor.astype(np.float32)
        if tensor.dtype.kind == "f" and tensor.dtype != np.float32
        else tensor
        for name, tensor in first.items()
    }


def _one_configuration(saved: Sequence[Mapping[str, Any]], checkpoints: Mapping[str, Path]) -> str:
    """The configuration of all folds."""
    names = [str(fold["init_args"]["configuration"]) for fold in saved]
    for name, path in zip(names, checkpoints.values(), strict=True):
        if name != names[0]:
            cause = f"is of the configuration {name}, other folds are of {names[0]}"
            raise Problems.one(cause, DAMAGED, file=path)
    return names[0]


def _of_another_network(
    configuration: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    tensors: Sequence[Mapping[str, np.ndarray]],
) -> list[str]:
    """What is said if the tensors are not those of the plan's network."""
    try:
        expected = tensor_shapes(configuration["architecture"], 1, len(_labels(dataset_json)))
        for fold in tensors:
            for name in sorted(expected.keys() | fold.keys()):
                if name not in fold:
                    raise ValueError(f"{name} is missing")
                if name not in expected:
                    raise ValueError(f"{name} is not in that network")
                if fold[name].shape != expected[name]:
                    raise ValueError(f"{name} is {fold[name].shape}, not {expected[name]}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        return [other_network(error)]
    return []


def _as_exported(
    folder: Path,
    plan: dict[str, Any],
    dataset_json: dict[str, Any],
    tensors: dict[str, np.ndarray],
    source: Mapping[str, Any],
) -> ModelFiles | None:
    """The model of panorgan that these weights are the export of; None if they are of none."""
    found = from_plain(plan, tensors, len(_channels(dataset_json)), len(_labels(dataset_json)))
    if found is None:
        return None
    own, weights = found
    card = card_of(own, [weights])
    if (folder / CARD).is_file():
        written = read_json(folder / CARD, DAMAGED, NOT_ITS)
        if written.get("checksum") == card["checksum"]:
            return ModelFiles(own, dataset_json, written, (weights,))
    return ModelFiles(own, dataset_json, card | source, (weights,))


# ---------------------------------------------------------------------------------------------
# Facts


def _plan(
    plan: Mapping[str, Any], name: str, configuration: dict[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """A plan of anybody with its one configuration, and what ours say beside."""
    reader = plan["image_reader_writer"]
    own = {
        **plan,
        "configurations": {name: configuration},
        "panorgan": {
            "orientation": ORIENTATIONS.get(reader, reader),
            "classes": list(classes),
        },
    }
    by_modality = own.pop("foreground_intensity_properties_by_modality", None)
    if by_modality is not None:  # its name in the first plans
        own.setdefault("foreground_intensity_properties_per_channel", by_modality)
    return own


def _dataset_json(dataset_json: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What of it is needed, as panorgan writes it; regions stay as they are."""
    labels = {"background": 0} | {name: value for value, name in enumerate(names, 1)}
    if "ignore" in dataset_json["labels"]:
        labels["ignore"] = len(labels)
    return {
        "channel_names": {str(i): name for i, name in enumerate(_channels(dataset_json))},
        "labels": dataset_json["labels"] if has_regions(dataset_json) else labels,
        "file_ending": str(dataset_json["file_ending"]),
    }


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    return [str(name) for name in channels.values()]


def _labels(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Values, or what regions hold, by name, but for ignored voxels."""
    return {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}


def has_regions(dataset_json: Mapping[str, Any]) -> bool:
    """Whether labels are regions, which may overlap, each with an output of its own."""
    values = _labels(dataset_json).values()
    return bool(dataset_json.get("regions_class_order")) or any(
        isinstance(value, list | tuple) for value in values
    )


def _class_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """All names but the background's, in the order of their values; regions in the file's."""
    labels = _labels(dataset_json)
    if has_regions(dataset_json):
        return [name for name in labels if name != "background"]
    return sorted(labels, key=lambda name: int(labels[name]))[1:]
