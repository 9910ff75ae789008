"""Models of nnU-Net 1: its plain U-Net is our small one, tensor by tensor.

Facts about the format are of nnunet 1.7.1.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panorgan.config.labels import load_labels
from panorgan.config.registry import NETWORKS, SMALL_UNET
from panorgan.nnunet.models.folders import PLANS_1, VERSION_1
from panorgan.nnunet.models.model import Model, network_of
from panorgan.nnunet.models.pickles import DAMAGED, damage, load_pickle, load_tensors
from panorgan.nnunet.plans import (
    RESAMPLING,
    SOFTMAX,
    STORED,
    make_dataset_json,
    resampling_kwargs,
)
from panorgan.problems import Problems, shown

NORMALISATIONS = {
    "CT": "CTNormalization",
    "nonCT": "ZScoreNormalization",
    "noNorm": "NoNormalization",
}
PREPROCESSORS = {
    "GenericPreprocessor": {},
    "PreprocessorFor2D": {},
    "GenericPreprocessor_linearResampling": {"order": 1},
    "Preprocessor3DDifferentResampling": {"order_z": 3},
    "Preprocessor3DBetterResampling": {"force_separate_z": False},
}
"""In what each resamples images otherwise than nnU-Net 2: by cubic splines, nearest along z."""

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerV2", "nnUNetTrainerV2_DDP", "nnUNetTrainerV2_DP")
OTHER_NETWORKS = re.compile(r"Cascade|Regions|_GN|GeLU|ReLU|Mish")
"""Trainers whose networks have a plain one's tensors and compute something else with them."""

# Our names of nnU-Net 1's modules. `last` is its second half of a stage: one convolution.
_NAMES = (
    (r"conv_blocks_context\.(\d+)\.blocks\.(\d+)\.", r"encoder.stages.\1.\2."),
    (r"conv_blocks_context\.(\d+)\.0\.blocks\.(\d+)\.", r"encoder.stages.\1.\2."),
    (r"conv_blocks_context\.(\d+)\.1\.blocks\.0\.", r"encoder.stages.\1.last."),
    (r"conv_blocks_localization\.(\d+)\.0\.blocks\.(\d+)\.", r"decoder.stages.\1.convs.\2."),
    (r"conv_blocks_localization\.(\d+)\.1\.blocks\.0\.", r"decoder.stages.\1.convs.last."),
    (r"tu\.(\d+)\.", r"decoder.stages.\1.upsample."),
    (r"seg_outputs\.(\d+)\.", r"decoder.heads.\1."),
)


def read_nnunet1(
    folder: Path, fold: str, checkpoint: Path, classes: Sequence[str] | None
) -> tuple[Model, list[str]]:
    """A model of nnU-Net 1 as ours; its network's outputs stay the same, bit for bit.

    Parameters
    ----------
    folder
        Holds plans.pkl.
    fold, checkpoint
        Name of the fold and its ``.model``, beside which lies its ``.model.pkl``.
    classes
        Names of the outputs 1, 2, …; None takes those of `default_classes`.

    Returns
    -------
    Model, list of str
        The second: what a user should know of it.

    Raises
    ------
    Problems
        If a file is missing or damaged, or the model is not a plain U-Net of one channel.
    """
    with damage(folder):
        return _read(folder, fold, checkpoint, classes)


def _read(
    folder: Path, fold: str, checkpoint: Path, classes: Sequence[str] | None
) -> tuple[Model, list[str]]:
    beside = load_pickle(folder / PLANS_1)
    info = load_pickle(checkpoint.with_name(f"{checkpoint.name}.pkl"))
    trainer, plans = shown(str(info["name"])), info["plans"]
    if OTHER_NETWORKS.search(trainer):
        _refuse(f"its trainer is {trainer}, whose network is not nnU-Net 1's plain U-Net", folder)
    stage = _stage(trainer, info["init"], plans, folder)
    saved = load_tensors(checkpoint)
    tensors = _our_names(saved["state_dict"], checkpoint)
    network = _arguments(tensors)
    outputs = tensors["decoder.heads.0.weight"].shape[0]
    _check(plans, stage, network, outputs, tensors, folder)
    names = _class_names(outputs - 1, classes, folder)
    facts = _plan(plans, stage, network, names, folder)
    notes = []
    if trainer not in TRAINERS:
        notes.append(
            f"trained by {trainer}: right if its norms and activations are nnU-Net 1's usual ones"
        )
    if _plan(beside, stage, network, names, folder) != facts:
        notes.append(f"{PLANS_1} differs from the plan in the checkpoint, which is the one taken")
    dataset_json = make_dataset_json(names, ignore=False)
    model = network_of(facts, dataset_json)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        _refuse(f"its network is not nnU-Net 1's plain U-Net ({_first_line(error)})", checkpoint)
    source = {"format": VERSION_1, "trainer": trainer, "fold": fold}
    card = {"converted_from": source, "epochs": len(saved["plot_stuff"][0])}
    return Model(model.eval(), facts, dataset_json, card), notes


def default_classes(count: int) -> list[str]:
    """The names of the class table if it has so many organs or classes, else class_1, …"""
    labels = load_labels()
    for known in (labels.organs, labels.labels):
        if [label.value for label in known] == list(range(1, count + 1)):
            return [label.name for label in known]
    return [f"class_{value}" for value in range(1, count + 1)]


def _refuse(cause: str, path: Path) -> None:
    raise Problems.one(cause, "it cannot be converted", file=path)


def _class_names(count: int, classes: Sequence[str] | None, folder: Path) -> list[str]:
    if classes is None:
        return default_classes(count)
    if len(classes) != count:
        cure = "name all of them in the order of their values"
        raise Problems.one(f"has {count} classes, not {len(classes)}", cure, file=folder)
    return list(classes)


def _stage(trainer: str, init: Sequence[Any], plans: Mapping[str, Any], folder: Path) -> Any:
    """The key of the resolution that the model was trained at."""
    stages = plans["plans_per_stage"]
    if len(stages) == 1:
        return next(iter(stages))
    place = 6 if "DDP" in trainer else 5
    stage = init[place] if len(init) > place else None
    if isinstance(stage, bool) or stage not in stages:
        _refuse("does not say at which of its plan's resolutions it was trained", folder)
    return stage


def _our_names(state: Mapping[str, torch.Tensor], checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tensors under the names that they have in `SmallUNet`."""
    tensors = {}
    for name, tensor in state.items():
        ours = name = name.removeprefix("module.")
        for pattern, replacement in _NAMES:
            ours, found = re.subn(f"^{pattern}", replacement, name)
            if found:
                break
        else:
            _refuse(f"its network holds {name}, which nnU-Net 1's plain U-Net has not", checkpoint)
        tensors[ours.replace(".instnorm.", ".norm.")] = tensor
    firsts = [name for name in tensors if re.match(r"encoder\.stages\.0\.\d+\.conv\.weight", name)]
    if not firsts or "decoder.heads.0.weight" not in tensors:
        _refuse("holds no network of nnU-Net 1", checkpoint)
    if not any(name.endswith("upsample.weight") for name in tensors):
        _refuse("its network does not upsample by transposed convolutions", checkpoint)
    last = str(len(firsts) - 1)
    return {name.replace(".last.", f".{last}."): tensor for name, tensor in tensors.items()}


def _arguments(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`SmallUNet`'s arguments, read off its tensors: some trainers overrule the plan."""
    encoder = _in_order(tensors, r"encoder\.stages\.(\d+)\.0\.conv\.weight")
    upsampling = _in_order(tensors, r"decoder\.stages\.(\d+)\.upsample\.weight")
    convs = _in_order(tensors, r"encoder\.stages\.0\.(\d+)\.conv\.weight")
    kernels = [list(weight.shape[2:]) for weight in encoder]
    return {
        "features": [weight.shape[0] for weight in encoder],
        "kernel_sizes": kernels,
        "strides": [
            [1] * len(kernels[0]),
            *(list(weight.shape[2:]) for weight in reversed(upsampling)),
        ],
        "convs_per_stage": len(convs),
    }


def _in_order(tensors: Mapping[str, torch.Tensor], pattern: str) -> list[torch.Tensor]:
    found = {
        int(match[1]): tensor
        for name, tensor in tensors.items()
        if (match := re.fullmatch(pattern, name))
    }
    return [found[number] for number in sorted(found)]


def _check(
    plans: Mapping[str, Any],
    stage: Any,
    network: Mapping[str, Any],
    outputs: int,
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """Whether the weights are of this plan and of a network that we have."""
    channels = tensors["encoder.stages.0.0.conv.weight"].shape[1]
    if channels != 1 or plans["num_modalities"] != 1:
        cause = f"takes {channels} images a case ({plans['num_modalities']} by its plan), not one"
        _refuse(cause, folder)
    values = sorted(value for value in _plain(plans["all_classes"]) if value > 0)
    if values != list(range(1, outputs)):
        found = ", ".join(map(str, values))
        cause = f"its network has {outputs} outputs, and its plan the label values {found}"
        _refuse(cause, folder)
    pooling = _plain(plans["plans_per_stage"][stage].get("pool_op_kernel_sizes"))
    strides = network["strides"][1:]
    # Some trainers, as that of FLARE22's winner, build fewer stages than the plan has.
    if pooling is not None and pooling[: len(strides)] != strides:
        cause = f"its weights pool by {strides}, its plan by {pooling}"
        raise Problems.one(cause, DAMAGED, file=folder)
    # nnU-Net 1 pads kernels of 3 by 1 and all others by nothing.
    if odd := [k for k in network["kernel_sizes"] if not set(k) <= {1, 3}]:
        _refuse(f"has kernels of size {odd[0]}, which shrink what they filter", folder)


def _plan(
    plans: Mapping[str, Any],
    stage: Any,
    network: Mapping[str, Any],
    classes: Sequence[str],
    folder: Path,
) -> dict[str, Any]:
    """The facts of an nnU-Net 1 plan as one of nnU-Net 2."""
    own = plans["plans_per_stage"][stage]
    patch = [int(size) for size in own["patch_size"]]
    dim = len(patch)
    scheme, mask = plans["normalization_schemes"][0], bool(plans["use_mask_for_norm"][0])
    if scheme not in NORMALISATIONS or (scheme == "CT" and mask):
        inside = " inside of the nonzero region" if mask else ""
        _refuse(f"normalises by {scheme}{inside}, which nnU-Net 2 does not", folder)
    default = "PreprocessorFor2D" if dim == 2 else "GenericPreprocessor"
    preprocessor = plans.get("preprocessor_name") or default
    if preprocessor not in PREPROCESSORS:
        _refuse(f"was preprocessed by {preprocessor}, which nnU-Net 2 does not have", folder)
    resampling = PREPROCESSORS[preprocessor]
    intensity = (plans["dataset_properties"].get("intensityproperties") or {}).get(0)
    name = "2d" if dim == 2 else "3d_fullres"
    configuration = {
        "data_identifier": f"panorgan_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": int(own["batch_size"]),
        "patch_size": patch,
        "median_image_size_in_voxels": _floats(own["median_patient_size_in_voxels"])[-dim:],
        "spacing": _floats(own["current_spacing"])[-dim:],
        "normalization_schemes": [NORMALISATIONS[scheme]],
        "use_mask_for_norm": [mask],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_data_kwargs": resampling_kwargs(order=3, is_seg=False) | resampling,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_seg_kwargs": resampling_kwargs(order=1, is_seg=True),
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": resampling_kwargs(order=1, is_seg=False),
        "architecture": {
            "network_class_name": NETWORKS[SMALL_UNET].path,
            "arch_kwargs": dict(network),
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_panorgan",
        "plans_name": "panorgan",
        "original_median_spacing_after_transp": _floats(own["original_spacing"]),
        "original_median_shape_after_transp": _floats(own["median_patient_size_in_voxels"]),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": _axes(plans.get("transpose_forward")),
        "transpose_backward": _axes(plans.get("transpose_backward")),
        "configurations": {name: configuration},
        "experiment_planner_used": "panorgan",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": _intensity(intensity)},
        "panorgan": {
            "orientation": STORED,
            "tile_average": SOFTMAX,
            # nnU-Net 2's preprocessing knows the nonzero region only while it normalises first.
            "normalise_last": not mask,
            "classes": list(classes),
        },
    }


def _intensity(properties: Mapping[str, Any] | None) -> dict[str, float]:
    """HU statistics under nnU-Net 2's names, not rounded: the network's input depends on them."""
    names = {"mn": "min", "mx": "max", "sd": "std"}
    return {
        names.get(key, key): float(value)
        for key, value in sorted((properties or {}).items())
        if isinstance(value, int | float | np.number)  # it holds those of each case too
    }


def _axes(order: Sequence[int] | None) -> list[int]:
    """Old plans lack it: then the axes stay."""
    return [0, 1, 2] if order is None else [int(axis) for axis in order]


def _floats(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and tuples, as JSON has them."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0])[:120]
