"""Models of stock nnU-Net 2: read into our model folder, and ours written for its commands.

The small network becomes a ``PlainConvUNet`` with the same outputs: biases that ours lacks are
zero, and each level's kernel is large enough for the encoder's and the decoder's there, with zeros
around the smaller one.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from panorgan.config.registry import NETWORKS, SMALL_UNET
from panorgan.io.writing import replacing, write_text
from panorgan.networks import SmallUNet
from panorgan.nnunet.models.model import (
    CARD,
    DATASET,
    PLANS,
    Model,
    network_of,
    read_json,
    tensor_checksum,
    tensors_of,
)
from panorgan.nnunet.models.pickles import DAMAGED, load_tensors
from panorgan.nnunet.models.stock import is_stock, plain_unet, stock_network
from panorgan.nnunet.plans import ORIENTATION, SOFTMAX, STORED, configuration_of
from panorgan.problems import Problems

CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"
NOT_ITS = "is not what nnU-Net 2 writes"
NORMALISATIONS = (
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
)
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
    folder: Path, fold: str, checkpoint: Path, classes: Sequence[str] | None
) -> tuple[Model, list[str]]:
    """A trained model of nnU-Net 2 as ours, with its own network.

    One that `write_nnunet2` made of the small network, and that was not trained since, becomes
    that network again.

    Parameters
    ----------
    folder
        Holds plans.json and dataset.json.
    fold, checkpoint
        Name of the fold and its checkpoint_final.pth.
    classes
        Names of the outputs 1, 2, …; None takes those of dataset.json.

    Returns
    -------
    Model, list of str
        The second: what a user should know of it.

    Raises
    ------
    Problems
        If a file is missing or damaged, or the model is none that we can run.
    """
    plan, dataset_json = (read_json(folder / name, DAMAGED, NOT_ITS) for name in (PLANS, DATASET))
    saved = load_tensors(checkpoint)
    state = {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor
        for name, tensor in saved["network_weights"].items()
    }
    trainer = str(saved["trainer_name"])
    card = {
        "converted_from": {"format": "nnU-Net 2", "trainer": trainer, "fold": fold},
        "epochs": int(saved["current_epoch"]),
    }
    if own := _as_exported(plan, dataset_json, state):
        if classes is not None:
            cause = "is an exported model of panorgan, which names its classes"
            raise Problems.one(cause, "leave out --classes", file=folder)
        if (folder / CARD).is_file():
            written = read_json(folder / CARD, DAMAGED, NOT_ITS)
            if written.get("checksum") == tensor_checksum(tensors_of(own.network)):
                card = written
        own.card = card
        return own, []
    names = _class_names(dataset_json, classes, folder)
    plan = _plan(plan, saved["init_args"]["configuration"], names, folder)
    (channel,) = _channels(dataset_json, folder)
    labels = {"background": 0} | {name: value for value, name in enumerate(names, 1)}
    if "ignore" in dataset_json["labels"]:
        labels["ignore"] = len(labels)
    dataset_json = {
        "channel_names": {"0": channel},
        "labels": labels,
        "file_ending": str(dataset_json["file_ending"]),
    }
    try:
        network = network_of(plan, dataset_json)
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        cause = f"its plan does not describe a network of its weights that is known here ({reason})"
        raise Problems.one(cause, "it cannot be converted", file=folder) from None
    notes = []
    if not re.match(rf"{TRAINER}(_|[A-Z\d]|$)", trainer):
        notes.append(f"trained by {trainer}: right only if that builds the network of its plan")
    return Model(network.eval(), plan, dataset_json, card), notes


def write_nnunet2(model: Model, out: Path) -> tuple[Path, list[str]]:
    """Write a model as ``nnUNetv2_predict`` reads it.

    Parameters
    ----------
    out
        A folder as the environment variable nnUNet_results names it.

    Returns
    -------
    Path, list of str
        The folder of the trained model, and what a user should know of it.

    Raises
    ------
    Problems
        If stock nnU-Net 2 has no such network.
    """
    name, configuration = configuration_of(model.plan)
    class_name = configuration["architecture"]["network_class_name"]
    if is_stock(class_name):
        network, plan = model.network, model.plan
    elif class_name == NETWORKS[SMALL_UNET].path:
        plan = _with_plain_network(model.plan)
        network = _plain_network(model.network, plan)
    else:
        cause = f"stock nnU-Net has no network that equals {class_name.rpartition('.')[2]}"
        raise Problems.one(cause, "only the student and models of nnU-Net can be exported")
    dataset, plans_name = plan["dataset_name"], plan["plans_name"]
    if not re.fullmatch(r"Dataset\d{3,}_[\w.-]+", dataset) or not re.fullmatch(
        r"[\w.-]+", plans_name
    ):
        cause = f"its plan's names are no names of folders: {dataset}, {plans_name}"
        raise Problems.one(cause, "mend dataset_name and plans_name in plans.json")
    folder = out / dataset / f"{TRAINER}__{plans_name}__{name}"
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": int(model.card.get("epochs") or 0),
        "init_args": {
            "plans": plan,
            "configuration": name,
            "fold": "all",
            "dataset_json": model.dataset_json,
        },
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": None,
    }
    write_text(folder / PLANS, json.dumps(plan, indent=1))
    write_text(folder / DATASET, json.dumps(model.dataset_json, indent=1))
    write_text(folder / CARD, json.dumps(model.card, indent=1))
    with replacing(folder / "fold_all" / CHECKPOINT) as temporary, open(temporary, "wb") as file:
        torch.save(checkpoint, file)
    notes = []
    if plan["panorgan"].get("tile_average") == SOFTMAX:
        notes.append(
            "nnU-Net 2 averages logits over tiles and normalises before it resamples, other than "
            "nnU-Net 1, which trained this model: its labels will differ a little"
        )
    return folder, notes


# ---------------------------------------------------------------------------------------------
# The small network as a plain one of nnU-Net 2, and back


def _with_plain_network(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan of the small network with its plain equal; its own is kept beside."""
    name, configuration = configuration_of(plan)
    own = configuration["architecture"]
    arguments = own["arch_kwargs"]
    kernels = arguments["kernel_sizes"]
    # The decoder of a level has the encoder's kernel of the level below it.
    below = [*kernels[1:], kernels[-1]]
    plain = plain_unet(
        arguments["features"],
        [list(map(max, *pair)) for pair in zip(kernels, below, strict=True)],
        arguments["strides"],
        arguments["convs_per_stage"],
    )
    return {
        **plan,
        "configurations": {name: configuration | {"architecture": plain}},
        "panorgan": {**plan["panorgan"], "architecture": own},
    }


def _plain_network(network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """The small network's equal: its weights, and zeros in all that it lacks."""
    tensors = network.state_dict()
    outputs = tensors["decoder.heads.0.weight"].shape[0]
    channels = tensors["encoder.stages.0.0.conv.weight"].shape[1]
    plain = stock_network(configuration_of(plan)[1]["architecture"], channels, outputs)
    targets = dict(plain.named_parameters())
    with torch.no_grad():
        for target in targets.values():
            target.zero_()
        for name, tensor in tensors.items():
            _centre(targets[_plain_name(name)], tensor.shape).copy_(tensor)
    return plain


def _as_exported(
    plan: dict[str, Any], dataset_json: dict[str, Any], state: Mapping[str, torch.Tensor]
) -> Model | None:
    """The small network that these weights are the export of; None if they are of none."""
    if not isinstance(plan.get("panorgan"), dict) or "architecture" not in plan["panorgan"]:
        return None
    own = deepcopy(plan)
    configuration_of(own)[1]["architecture"] = own["panorgan"].pop("architecture")
    network = network_of(own, dataset_json)
    if not isinstance(network, SmallUNet):
        return None
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(_centre(state[_plain_name(name)], tensor.shape))
    again = _plain_network(network, plan).state_dict()
    if again.keys() != state.keys() or any(
        not torch.equal(tensor, state[name]) for name, tensor in again.items()
    ):
        return None
    return Model(network.eval(), own, dataset_json, {})


def _plain_name(name: str) -> str:
    """The name in ``PlainConvUNet`` of a tensor of `SmallUNet`."""
    name = re.sub(r"^(encoder\.stages\.\d+)\.(\d+)\.", r"\1.0.convs.\2.", name)
    name = re.sub(r"^decoder\.stages\.(\d+)\.upsample\.", r"decoder.transpconvs.\1.", name)
    return re.sub(r"^decoder\.heads\.", "decoder.seg_layers.", name)


def _centre(weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The view of this shape in the middle of a larger tensor."""
    margins = [(size - inner) // 2 for size, inner in zip(weight.shape, shape, strict=True)]
    return weight[tuple(slice(at, at + size) for at, size in zip(margins, shape, strict=True))]


# ---------------------------------------------------------------------------------------------
# Facts of others' models


def _plan(
    plan: dict[str, Any], configuration: str, classes: Sequence[str], folder: Path
) -> dict[str, Any]:
    """A plan of anybody with its one configuration resolved, and what ours say beside."""
    with warnings.catch_warnings(action="ignore"):  # of plans that name no network: it is known
        own = deepcopy(PlansManager(plan).get_configuration(configuration).configuration)
    own.pop("inherits_from", None)
    reader = plan["image_reader_writer"]
    if own.get("previous_stage"):
        _refuse("is the second stage of a cascade", folder)
    if own["preprocessor_name"] != "DefaultPreprocessor":
        _refuse(f"was preprocessed by {own['preprocessor_name']}, which is unknown here", folder)
    if own["normalization_schemes"][0] not in NORMALISATIONS:
        scheme = own["normalization_schemes"][0]
        _refuse(f"normalises by {scheme}, which is unknown here", folder)
    for key in ("resampling_fn_data", "resampling_fn_seg"):
        if own[key] not in RESAMPLINGS:
            _refuse(f"resamples by {own[key]}, which is unknown here", folder)
    if reader not in ORIENTATIONS:
        _refuse(f"reads images by {reader}: known are {', '.join(ORIENTATIONS)}", folder)
    if plan.get("label_manager", "LabelManager") != "LabelManager":
        _refuse(f"its labels are those of {plan['label_manager']}, which is unknown here", folder)
    return {
        **plan,
        "configurations": {configuration: own},
        "panorgan": {"orientation": ORIENTATIONS[reader], "classes": list(classes)},
    }


def _channels(dataset_json: Mapping[str, Any], folder: Path) -> list[str]:
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    if len(channels) != 1:
        _refuse(f"takes {len(channels)} images a case, not one", folder)
    return [str(name) for name in channels.values()]


def _class_names(
    dataset_json: Mapping[str, Any], classes: Sequence[str] | None, folder: Path
) -> list[str]:
    """The names of the outputs 1, 2, … after checking that they are that."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    if dataset_json.get("regions_class_order") or any(
        isinstance(value, list | tuple) for value in labels.values()
    ):
        _refuse("its labels are regions, which may overlap", folder)
    by_value = {int(value): name for name, value in labels.items()}
    if sorted(by_value) != list(range(len(labels))):
        _refuse(f"its label values are {', '.join(map(str, sorted(by_value)))}", folder)
    names = [by_value[value] for value in range(1, len(labels))]
    if classes is None:
        return names
    if len(classes) != len(names):
        cure = "name all of them in the order of their values"
        raise Problems.one(f"has {len(names)} classes, not {len(classes)}", cure, file=folder)
    return list(classes)


def _refuse(cause: str, folder: Path) -> None:
    raise Problems.one(cause, "it cannot be converted", file=folder)
