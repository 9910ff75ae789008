"""A model folder: the trained network with all that its use needs, nothing of it pickled.

``plans.json``, ``dataset.json``, ``weights.safetensors`` and ``card.json``, which says what the
model is; training adds ``progress.csv`` and ``curve.png``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from panorgan.config.registry import NETWORKS
from panorgan.io.writing import replacing, write_text
from panorgan.networks import build_network, count_parameters
from panorgan.nnunet.models.stock import is_stock, stock_network
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problems

PLANS, DATASET, WEIGHTS, CARD = "plans.json", "dataset.json", "weights.safetensors", "card.json"
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
    names = {network.path: name for name, network in NETWORKS.items()}
    outputs = {value for name, value in dataset_json["labels"].items() if name != "ignore"}
    class_name, channels = architecture["network_class_name"], len(dataset_json["channel_names"])
    if is_stock(class_name):
        return stock_network(architecture, channels, len(outputs))
    return build_network(
        names.get(class_name, class_name),
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
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


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
    configuration = configuration_of(plan)[1]
    facts = {
        "network": configuration["architecture"]["network_class_name"],
        "classes": plan["panorgan"]["classes"],
        "orientation": plan["panorgan"]["orientation"],
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "parameters": count_parameters(network),
        "versions": {package: version(package) for package in PACKAGES},
        "checksum": tensor_checksum(tensors),
    }
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # safetensors leaves it to the owner alone
    write_text(folder / PLANS, json.dumps(plan, indent=1))
    write_text(folder / DATASET, json.dumps(dataset_json, indent=1))
    write_text(folder / CARD, json.dumps({**facts, **card}, indent=1))


def load_model(folder: str | Path) -> Model:
    """Read a model folder onto the CPU and compare its weights with its card.

    Raises
    ------
    Problems
        If the folder or a file of it is missing, damaged, or of another model.
    """
    folder = Path(folder)
    cure = "copy the whole model folder again, or train the model again"
    if not folder.is_dir():
        raise Problems.one("there is no such model folder", "check the path", file=folder)
    for name in (PLANS, DATASET, CARD, WEIGHTS):
        if not (folder / name).is_file():
            if inside := sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}")):
                raise Problems.one("is no model folder", f"is it {inside[0]}?", file=folder)
            if name in (PLANS, WEIGHTS) and _is_foreign(folder):
                conversion = f"`panorgan convert {folder} -o NEW` first"
                raise Problems.one("is a model of nnU-Net", conversion, file=folder)
            raise Problems.one(f"{name} is missing in this model folder", cure, file=folder)
    plan, dataset_json, card = (read_json(folder / name, cure) for name in (PLANS, DATASET, CARD))
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        cause = f"the weights cannot be read ({error})"
        raise Problems.one(cause, cure, file=folder / WEIGHTS) from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise Problems.one(f"its weights are not all numbers ({name})", cure, file=folder)
    if tensor_checksum(tensors) != card.get("checksum"):
        cause = "the weights are not those that the model's card describes"
        raise Problems.one(cause, cure, file=folder / WEIGHTS)
    try:
        network = network_of(plan, dataset_json)
        if tensors.keys() != tensors_of(network).keys():
            raise ValueError("tensors of another network")
        network.load_state_dict(tensors, strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError):
        cause = f"{PLANS} does not describe the network that these weights belong to"
        raise Problems.one(cause, cure, file=folder) from None
    return Model(network.eval(), plan, dataset_json, card)


def _is_foreign(folder: Path) -> bool:
    """Whether a folder looks like one of nnU-Net's."""
    patterns = ("plans.pkl", "fold_*", "all/*.model")
    return any(any(folder.glob(pattern)) for pattern in patterns)


def read_json(path: Path, cure: str, wrong: str = "is damaged: no JSON object") -> dict[str, Any]:
    """Read a file of a model's folder; `wrong` is said if it holds no JSON object.

    Raises
    ------
    Problems
        If it cannot be read, or for `wrong`; with the cure.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problems.one(f"cannot be read ({error})", cure, file=path) from None
    if not isinstance(content, dict):
        raise Problems.one(wrong, cure, file=path)
    return content
