"""Model folders: what lies in one, and where one is. Importing this imports no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from panorgan.io.tables import why_no_text
from panorgan.nnunet.models.shapes import count_parameters
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problems

PLANS, DATASET, WEIGHTS, CARD = "plans.json", "dataset.json", "weights.safetensors", "card.json"
CHECKPOINT = "checkpoint_final.pth"
"""Of a fold of nnU-Net 2 whose training is finished."""
PLANS_1, CHECKPOINT_1 = "plans.pkl", "model_final_checkpoint.model"
"""The same of nnU-Net 1."""
ALL = "all"
"""Name of the fold of a model that has learnt all cases."""

OURS, VERSION_1, VERSION_2 = "panorgan", "nnU-Net 1", "nnU-Net 2"


@dataclass(frozen=True)
class ModelFiles:
    """A trained model as plain values.

    Attributes
    ----------
    plan
        nnU-Net 2's plan with one configuration, and what panorgan says of it under ``panorgan``.
    dataset_json
        Labels and channels.
    card
        What the model is. Its `checksum` tells one model from another.
    tensors
        For each fold its parameters and buffers by name: nnU-Net's names for its networks, ours
        for ours.
    folds
        Names of the folds.
    notes
        What a user should know of it.
    """

    plan: dict[str, Any]
    dataset_json: dict[str, Any]
    card: dict[str, Any]
    tensors: tuple[dict[str, np.ndarray], ...]
    folds: tuple[str, ...] = (ALL,)
    notes: tuple[str, ...] = ()


def checksum_of(tensors: Mapping[str, np.ndarray]) -> str:
    """Hash of names, types, shapes and bytes of arrays, in whatever order."""
    digest = blake2b(digest_size=16)
    for name, array in sorted(tensors.items()):
        # Types by torch's names, with which the first models were hashed.
        digest.update(f"{name} torch.{array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def model_checksum(tensors: Sequence[Mapping[str, np.ndarray]]) -> str:
    """The checksum of one fold's tensors, or of the checksums of several folds'."""
    found = [checksum_of(fold) for fold in tensors]
    return (
        found[0]
        if len(found) == 1
        else blake2b("".join(found).encode(), digest_size=16).hexdigest()
    )


def card_of(plan: Mapping[str, Any], tensors: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """What plan and weights say of a model."""
    configuration = configuration_of(plan)[1]
    return {
        "network": configuration["architecture"]["network_class_name"],
        "classes": plan["panorgan"]["classes"],
        "orientation": plan["panorgan"]["orientation"],
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "parameters": count_parameters({name: a.shape for name, a in tensors[0].items()}),
        "checksum": model_checksum(tensors),
    }


@dataclass(frozen=True)
class Found:
    """A model folder, and of what kind it is."""

    folder: Path
    kind: str
    checkpoints: dict[str, Path] = field(default_factory=dict)
    """Of nnU-Net's, by fold; a fold that was not finished is not there."""
    expected: str = ""
    """Name of a checkpoint."""

    def named(self, fold: str) -> str:
        """A fold's name as `checkpoints` has it; Problems if it is not there."""
        self.check_finished()
        name = fold.removeprefix("fold_")
        if name not in self.checkpoints:
            raise Problems.one(f"has no fold {name}", self.choice, file=self.folder)
        return name

    @property
    def choice(self) -> str:
        """Which folds a user can name."""
        return f"say --fold {' or '.join(self.checkpoints)}"

    def check_finished(self) -> None:
        """Problems if no fold is there."""
        if not self.checkpoints:
            cause = f"no fold of it has a {self.expected}"
            cure = "finish its training, or copy the whole model folder again"
            raise Problems.one(cause, cure, file=self.folder)


def find_model(source: Path) -> Found:
    """The model of a folder: right in it, the fold that it is, or the only one below it.

    Raises
    ------
    Problems
        If there is none, or several.
    """
    if not source.is_dir():
        raise Problems.one("there is no such model folder", "check the path", file=source)
    if found := _at(source):
        return found
    # A fold's folder: only this fold.
    if (above := _at(source.resolve().parent)) and above.checkpoints:
        only = {
            name: path
            for name, path in above.checkpoints.items()
            if path.parent == source.resolve()
        }
        if only:
            return Found(above.folder, above.kind, only, above.expected)
    places = [
        path.parent
        for depth in ("*", "*/*", "*/*/*")
        for name in (PLANS, PLANS_1)
        for path in source.glob(f"{depth}/{name}")
        # A run's plans lie beside its models too.
        if name != PLANS or (path.parent / WEIGHTS).is_file() or any(path.parent.glob("fold_*"))
    ]
    if not places:
        cause = "holds no model of panorgan, nnU-Net 2 or nnU-Net 1"
        raise Problems.one(cause, "name the folder of a trained model", file=source)
    if len(places) > 1:
        listed = ", ".join(str(place.relative_to(source)) for place in sorted(places))
        raise Problems.one(f"holds several models: {listed}", "name one of them", file=source)
    return _at(places[0])


def _at(folder: Path) -> Found | None:
    """The model whose plan lies right in a folder."""
    if (folder / PLANS_1).is_file():
        found = _checkpoints(folder, CHECKPOINT_1)
        return Found(folder, VERSION_1, found, CHECKPOINT_1)
    if not (folder / PLANS).is_file() and not (folder / WEIGHTS).is_file():
        return None
    if (folder / WEIGHTS).is_file() or not any(folder.glob("fold_*")):
        return Found(folder, OURS)
    return Found(folder, VERSION_2, _checkpoints(folder, CHECKPOINT), CHECKPOINT)


def _checkpoints(folder: Path, name: str) -> dict[str, Path]:
    """A fold's final checkpoint by the fold's name: 0, 1, …, all."""
    found = [*folder.glob(f"fold_*/{name}"), *folder.glob(f"all/{name}")]
    if not found and (folder / name).is_file():
        return {ALL: folder / name}
    names = {path.parent.name.removeprefix("fold_"): path for path in found}
    return dict(sorted(names.items(), key=lambda item: (len(item[0]), item[0])))


def read_json(path: Path, cure: str, wrong: str = "is damaged: no JSON object") -> dict[str, Any]:
    """Read a file of a model's folder; `wrong` is said if it holds no JSON object.

    Raises
    ------
    Problems
        If it cannot be read, or for `wrong`; with the cure.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Problems.one(f"cannot be read ({error})", cure, file=path) from None
    if not isinstance(content, dict):
        raise Problems.one(wrong, cure, file=path)
    return content


def check_class_names(names: Iterable[object], folder: Path) -> None:
    """Refuse a model whose classes have names that do harm where they are printed or tabulated.

    Raises
    ------
    Problems
        For the first such name.
    """
    for name in names:
        if fault := why_no_text(str(name)):
            cause = f"has a class '{name}', which {fault}"
            raise Problems.one(cause, "mend its name in the model's files", file=folder)
