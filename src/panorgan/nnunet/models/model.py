"""A model folder: the trained network with all that its use needs, nothing of it pickled.

``plans.json``, ``dataset.json``, ``weights.safetensors`` and ``card.json``, which says what the
model is; training adds ``progress.csv`` and ``curve.png``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from panorgan.config.registry import NETWORKS_BY_PATH
from panorgan.io.writing import replacing, write_text
from panorgan.networks import build_network
from panorgan.nnunet.models.files import read_model
from panorgan.nnunet.models.folders import (
    CARD,
    DATASET,
    PLANS,
    WEIGHTS,
    ModelFiles,
    card_of,
    checksum_of,
)
from panorgan.nnunet.models.stock import is_stock, stock_network
from panorgan.nnunet.models.version2 import UNUSABLE, other_network
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problems

PACKAGES = ("panorgan", "nnunetv2", "torch")


@dataclass
class Model:
    """A trained network in evaluation mode and what belongs to it."""

    network: nn.Module
    plan: dict[str, Any]
    dataset_json: dict[str, Any]
    card: dict[str, Any]


def network_of(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> nn.Module:
    """The network that a plan describes, with new weights; deep supervision is off.

    Raises
    ------
    ValueError, TypeError, KeyError
        If the plan's network is neither panorgan's nor stock nnU-Net's, or its arguments do not
        describe one.
    """
    architecture = configuration_of(plan)[1]["architecture"]
    outputs = {value for name, value in dataset_json["labels"].items() if name != "ignore"}
    class_name, channels = architecture["network_class_name"], len(dataset_json["channel_names"])
    if is_stock(class_name):
        return stock_network(architecture, channels, len(outputs))
    ours = NETWORKS_BY_PATH.get(class_name)
    return build_network(
        ours.name if ours else class_name,
        channels,
        len(outputs),
        deep_supervision=False,
        **architecture["arch_kwargs"],
    )


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's parameters and buffers, each under its first name.

    Stock nnU-Net's networks have several names for the same tensor.
    """
    state = network.state_dict()
    own = (*network.named_parameters(), *network.named_buffers())
    return {name: state[name] for name, _ in own if name in state}


def tensor_checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and bytes of tensors, in whatever order and on any device."""
    return checksum_of(_arrays(tensors))


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def save_model(
    folder: str | Path,
    network: nn.Module,
    plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    card: Mapping[str, Any],
) -> None:
    """Write a model into a folder, which is made if need be.

    Parameters
    ----------
    card
        What the training knows; what plan and network say (classes, orientation, spacing,
        parameters, versions, checksum of the weights) is added.
    """
    folder = Path(folder)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors_of(network).items()}
    facts = card_of(plan, [_arrays(tensors)])
    facts |= {"versions": {package: version(package) for package in PACKAGES}}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # safetensors leaves it to the owner alone
    write_text(folder / PLANS, json.dumps(plan, indent=1))
    write_text(folder / DATASET, json.dumps(dataset_json, indent=1))
    write_text(folder / CARD, json.dumps({**facts, **card}, indent=1))


def load_model(folder: str | Path) -> Model:
    """Read a model that `read_model` knows, of one set of weights, onto the CPU.

    Raises
    ------
    Problems
        As `read_model`; and if the model has several folds.
    """
    files = read_model(folder)
    if len(files.folds) > 1:
        cause = f"has several folds: {', '.join(files.folds)}"
        raise Problems.one(cause, "name the folder of one", file=folder)
    return model_of(files, Path(folder))


def model_of(files: ModelFiles, folder: Path) -> Model:
    """The network of a model of one fold; `folder` is for what is said of it.

    Raises
    ------
    Problems
        If the plan names a layer that is none.
    """
    (tensors,) = files.tensors
    try:
        network = network_of(files.plan, files.dataset_json)
        if tensors.keys() != tensors_of(network).keys():
            raise ValueError("tensors of another network")
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        network.load_state_dict(state, strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Problems.one(other_network(error), UNUSABLE, file=folder) from None
    return Model(network.eval(), files.plan, files.dataset_json, files.card)
