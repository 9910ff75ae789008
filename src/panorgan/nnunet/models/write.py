"""Models of ours written for the commands of stock nnU-Net 2."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from panorgan.config.registry import NETWORKS, SMALL_UNET
from panorgan.io.writing import replacing, write_text
from panorgan.nnunet.cropping import crop_key, crop_of
from panorgan.nnunet.models.exported import plain_plan, plain_tensors
from panorgan.nnunet.models.folders import CARD, CHECKPOINT, DATASET, PLANS
from panorgan.nnunet.models.model import Model, tensors_of
from panorgan.nnunet.models.stock import is_stock, stock_network
from panorgan.nnunet.models.version2 import TRAINER
from panorgan.nnunet.plans import SOFTMAX, configuration_of
from panorgan.problems import Problems


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
        plan = plain_plan(model.plan)
        network = _plain_network(model, plan)
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
    if crop_key(plan):
        notes.append(
            f"nnU-Net 2 does not crop to the {crop_of(plan)}, as this model's training did: where "
            "there is much air around a patient its labels will differ"
        )
    return folder, notes


def _plain_network(model: Model, plan: Mapping[str, Any]) -> nn.Module:
    """The small network's equal that a plan describes."""
    tensors = {name: tensor.numpy() for name, tensor in tensors_of(model.network).items()}
    channels = len(model.dataset_json["channel_names"])
    outputs = tensors["decoder.heads.0.weight"].shape[0]
    architecture = configuration_of(plan)[1]["architecture"]
    network = stock_network(architecture, channels, outputs)
    plain = plain_tensors(tensors, architecture, channels, outputs)
    network.load_state_dict(
        {name: torch.from_numpy(array) for name, array in plain.items()}, strict=False
    )
    return network
