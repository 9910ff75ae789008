"""nnU-Net 2 plans made from a recipe and exact statistics, without nnU-Net's planner.

A plan is plain JSON in nnU-Net's format with one key more, ``panorgan``. Importing this imports
neither torch nor nnU-Net.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panorgan.config.registry import NETWORKS, NONZERO
from panorgan.config.settings import Network, Recipe
from panorgan.problems import Problems

ORIENTATION = "RAS"
"""The order in which networks see the axes: x to the right, y forwards, z to the head."""

STORED = "stored"
"""Orientation of networks of others, which see a volume in the order in which it is stored."""

SOFTMAX = "softmax"
"""A plan's ``tile_average`` where it is not logits that are averaged over tiles."""

ARCHITECTURE_KEYS = tuple(key for key in Network.model_fields if key != "name")
RESAMPLING = "resample_data_or_seg_to_shape"


def make_plan(
    recipe: Mapping[str, Any],
    classes: Sequence[str],
    intensity: Mapping[str, float],
    median_shape: Sequence[float],
    median_spacing: Sequence[float],
) -> dict[str, Any]:
    """The plan of a network.

    Parameters
    ----------
    recipe
        A `panorgan.config.settings.Recipe` as a dict.
    classes
        Names of the network's outputs 1, 2, …; output 0 is background.
    intensity
        HU statistics of the foreground, as `panorgan.cases.intensities.statistics` gives them.
    median_shape, median_spacing
        Medians over the training cases, (z, y, x) voxels and mm; they only inform.

    Returns
    -------
    dict
        nnU-Net 2 plans with a single configuration: ``2d`` if the patch has two axes, else
        ``3d_fullres``. Equal arguments give equal JSON.
    """
    network = recipe["network"]
    spacing = [float(mm) for mm in recipe["spacing_mm"]]
    name = "2d" if len(recipe["patch_size"]) == 2 else "3d_fullres"
    median_shape = [round(float(size)) for size in median_shape]
    median_spacing = [round(float(mm), 4) for mm in median_spacing]
    median = list(zip(median_shape, median_spacing, strict=True))[-len(spacing) :]
    configuration = {
        "data_identifier": f"panorgan_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": recipe["batch_size"],
        "patch_size": list(recipe["patch_size"]),
        "median_image_size_in_voxels": [
            float(round(size * mm / target))
            for (size, mm), target in zip(median, spacing, strict=True)
        ],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_data_kwargs": resampling_kwargs(order=3, is_seg=False),
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_seg_kwargs": resampling_kwargs(order=1, is_seg=True),
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": resampling_kwargs(order=1, is_seg=False),
        "architecture": {
            "network_class_name": NETWORKS[network["name"]].path,
            "arch_kwargs": {key: network[key] for key in ARCHITECTURE_KEYS},
            "_kw_requires_import": [],
        },
        "batch_dice": recipe["training"]["batch_dice"],
    }
    return {
        "dataset_name": "Dataset001_panorgan",
        "plans_name": "panorgan",
        "original_median_spacing_after_transp": median_spacing,
        "original_median_shape_after_transp": median_shape,
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "panorgan",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {key: round(float(value), 4) for key, value in sorted(intensity.items())}
        },
        "panorgan": {
            "recipe": dict(recipe),
            "orientation": ORIENTATION,
            "classes": list(classes),
        },
    }


def resampling_kwargs(order: int, *, is_seg: bool) -> dict[str, Any]:
    """Splines of an order; where one spacing is over 3 times another, in plane, nearest across."""
    return {
        "is_seg": is_seg,
        "order": order,
        "order_z": 0,
        "force_separate_z": None,
        "separate_z_anisotropy_threshold": 3,
    }


def make_dataset_json(classes: Sequence[str], ignore: bool) -> dict[str, Any]:
    """nnU-Net's dataset.json: values 1, 2, … for the classes and the next for ignored voxels."""
    labels = {"background": 0} | {name: value for value, name in enumerate(classes, 1)}
    if ignore:
        labels["ignore"] = len(labels)
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def configuration_of(plan: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and content of a plan's one configuration."""
    ((name, configuration),) = plan["configurations"].items()
    return name, configuration


def output_count(plan: Mapping[str, Any]) -> int:
    """How many outputs a plan's network has: the background and each class."""
    return 1 + len(plan["panorgan"]["classes"])


def deep_supervision_sizes(plan: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Spatial size of each output of a network in training, the full resolution first."""
    configuration = configuration_of(plan)[1]
    size = list(configuration["patch_size"])
    sizes = []
    for strides in configuration["architecture"]["arch_kwargs"]["strides"][:-1]:
        size = [-(-n // stride) for n, stride in zip(size, strides, strict=True)]
        sizes.append(tuple(size))
    return sizes


def check_plan(path: str | Path) -> dict[str, Any]:
    """Read a plan that is to be used as it is.

    Raises
    ------
    Problems
        If the file cannot be read or is not what `make_plan` makes of the recipe in it.
    """
    cure = "take a plans.json that panorgan wrote, or set `plan` to null"
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
        own = plan["panorgan"]
        own["recipe"].setdefault("crop", NONZERO)  # of plans made before this was a choice
        recipe = {key: own["recipe"][key] for key in Recipe.model_fields}
        expected = make_plan(
            {**own["recipe"], **Recipe.model_validate(recipe).model_dump()},
            own["classes"],
            plan["foreground_intensity_properties_per_channel"]["0"],
            plan["original_median_shape_after_transp"],
            plan["original_median_spacing_after_transp"],
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise Problems.one(f"cannot be read ({error})", cure, file=path) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cause = f"is no plan of panorgan ({type(error).__name__}: {' '.join(str(error).split())})"
        raise Problems.one(cause, cure, file=path) from None
    if difference := _difference(plan, expected):
        cause = f"does not follow from the recipe in it: {difference}"
        raise Problems.one(cause, cure, file=path)
    return plan


def _difference(found: Any, expected: Any, where: str = "") -> str:
    """The first place where two JSON values differ, or an empty text."""
    if not (isinstance(found, dict) and isinstance(expected, dict)):
        return "" if found == expected else f"{where} is {found}, not {expected}"
    for key in sorted({*found, *expected}):
        path = f"{where}.{key}".lstrip(".")
        if key not in found or key not in expected:
            return f"{path} is {'missing' if key in expected else 'unknown'}"
        if difference := _difference(found[key], expected[key], path):
            return difference
    return ""
