"""From a CT to what a network sees. Training and prediction call the same function."""

import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from panorgan.nnunet.plans import STORED, configuration_of, make_dataset_json
from panorgan.volumes import Grid, Volume, canonical_spacing, to_canonical


@dataclass(frozen=True)
class Preprocessed:
    """A case on the network's grid.

    Attributes
    ----------
    data : (1, z, y, x) float32 array
        Normalised intensities, axes in the plan's orientation.
    seg : (1, z, y, x) int16 array or None
        Label; -1 outside of the image's nonzero region (no background that was looked at).
    properties : dict
        nnU-Net's: shapes before and after cropping, bounding box, spacing; with a label also
        `class_locations`, for each class int16 (n, 4) indices (0, z, y, x) of some of its voxels.
    patch_size : tuple of int
        The plan's; files are laid out for reading patches of this size.
    """

    data: np.ndarray
    seg: np.ndarray | None
    properties: dict[str, Any]
    patch_size: tuple[int, ...]


def network_grid(grid: Grid, plan: Mapping[str, Any]) -> Grid:
    """The grid whose canonical order is the order in which the plan's network sees the voxels.

    Networks of others see them as they are stored: then it is a grid without an orientation.
    """
    if plan["panorgan"]["orientation"] == STORED:
        return replace(grid, affine=np.diag([*grid.spacing[::-1], 1.0]))
    return grid


def preprocess_image(
    volume: Volume, plan: Mapping[str, Any], label: np.ndarray | None = None
) -> Preprocessed:
    """Reorient, crop to the nonzero region, normalise and resample, with nnU-Net's own functions.

    Parameters
    ----------
    volume
        The CT as stored.
    plan
        As `panorgan.nnunet.plans.make_plan` makes it. With a 2D plan all slices are kept, at
        their distance.
    label
        (z, y, x) in the image's stored order; the value after the last class is ignored.
    """
    if plan["panorgan"].get("normalise_last"):
        return _normalised_last(volume, plan, label)
    name, configuration = configuration_of(plan)
    plans = PlansManager(dict(plan))
    classes = plan["panorgan"]["classes"]
    grid = network_grid(volume.grid, plan)
    image = to_canonical(volume.array, grid)[None]
    seg = None
    if label is not None:
        seg = to_canonical(label, grid)[None].astype(np.int16)
    ignore = seg is not None and int(seg.max()) > len(classes)
    data, processed, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image,
        seg,
        {"spacing": list(canonical_spacing(grid))},
        plans,
        plans.get_configuration(name),
        make_dataset_json(classes, ignore),
    )
    if seg is not None:
        properties["class_locations"] = {
            key: np.asarray(found, np.int16).reshape(-1, 4)
            for key, found in properties["class_locations"].items()
        }
    return Preprocessed(
        np.ascontiguousarray(data, np.float32),
        None if seg is None else np.ascontiguousarray(processed, np.int16),
        properties,
        tuple(configuration["patch_size"]),
    )


def _normalised_last(
    volume: Volume, plan: Mapping[str, Any], label: np.ndarray | None
) -> Preprocessed:
    """Resample first, then normalise, as nnU-Net 1 did; nnU-Net 2 does it the other way round."""
    name, configuration = configuration_of(plan)
    (scheme,) = configuration["normalization_schemes"]
    raw_plan = {
        **plan,
        "configurations": {name: {**configuration, "normalization_schemes": ["NoNormalization"]}},
        "panorgan": {**plan["panorgan"], "normalise_last": False},
    }
    raw = preprocess_image(volume, raw_plan, label)
    intensity = plan["foreground_intensity_properties_per_channel"]["0"]
    normalisation = getattr(default_normalization_schemes, scheme)(False, intensity)
    return replace(raw, data=normalisation.run(raw.data[0])[None])


def save(folder: str | Path, case: str, preprocessed: Preprocessed) -> None:
    """Write a labelled case as ``nnUNetDatasetBlosc2`` reads it; equal cases give equal bytes.

    The files are ``CASE.b2nd``, ``CASE_seg.b2nd`` and ``CASE.pkl``.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as name:
        temporary = Path(name)
        arrays = {f"{case}.b2nd": preprocessed.data, f"{case}_seg.b2nd": preprocessed.seg}
        for file, array in arrays.items():
            blocks, chunks = comp_blosc2_params(
                array.shape, preprocessed.patch_size, array.itemsize
            )
            # One thread: several would store a chunk's blocks in the order in which they finish.
            compression = {
                "codec": blosc2.Codec.LZ4HC,
                "clevel": 5,
                "filters": [blosc2.Filter.SHUFFLE],
                "nthreads": 1,
            }
            blosc2.asarray(
                array,
                urlpath=str(temporary / file),
                chunks=chunks,
                blocks=blocks,
                cparams=compression,
            )
        (temporary / f"{case}.pkl").write_bytes(pickle.dumps(preprocessed.properties))
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
