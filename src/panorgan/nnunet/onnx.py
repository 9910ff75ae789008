"""A trained network as an ONNX file, for programs that have no PyTorch."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from panorgan.networks import UNet
from panorgan.nnunet.model import Model, load_model
from panorgan.nnunet.plans import configuration_of
from panorgan.problems import Problems
from panorgan.tables import replacing

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4
"""Largest difference from PyTorch's logits, in units of the largest of them (if over 1)."""


def export_onnx(model_folder: str | Path, path: str | Path) -> list[str]:
    """Write the network of a model folder as one ONNX file of float32.

    The file takes ``image``, (batch, channels, *size), preprocessed as the model's plan says, and
    gives ``logits``, (batch, outputs, *size), of full resolution. The batch's size is free, and
    with a network of panorgan every axis is too, odd ones included; a network of nnU-Net's keeps
    the plan's patch size. Its metadata ``panorgan`` is JSON that says what a user of the file has
    to know: classes, orientation, spacing, patch size, intensities, and the weights' checksum.

    ONNX Runtime runs the file before it appears: its logits on random numbers equal PyTorch's.

    Parameters
    ----------
    model_folder
        As `panorgan.nnunet.model` reads it.
    path
        The file to write.

    Returns
    -------
    list of str
        What was made, for a person.

    Raises
    ------
    Problems
        If a package for it is missing, the file exists already, the model folder is damaged, or
        the exported network computes something else.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        cause = f"ONNX needs the packages {', '.join(missing)}"
        raise Problems.one(cause, "install them: pip install 'panorgan[onnx]'")
    path = Path(path)
    if path.exists():
        raise Problems.one("exists already", "name another with -o", file=path)
    model = load_model(model_folder)
    free = isinstance(model.network, UNet)
    with replacing(path) as temporary:
        _write(model, temporary, free)
        difference = _difference(model, temporary, free)
        if not difference <= TOLERANCE:
            cause = f"its logits differ from PyTorch's by {difference:.1g}: it is not written"
            raise Problems.one(cause, "take other versions of its packages", file=path)
    size = "any size" if free else "x".join(map(str, _patch_size(model)))
    return [
        f"{path}: {INPUT} (batch, channels, {size}) float32 to {OUTPUT}, opset {OPSET}",
        f"  ONNX Runtime's logits differ from PyTorch's by {difference:.1g} at most",
    ]


def _patch_size(model: Model) -> list[int]:
    return list(configuration_of(model.plan)[1]["patch_size"])


def _write(model: Model, path: Path, free: bool) -> None:
    import onnx

    configuration = configuration_of(model.plan)[1]
    patch_size = _patch_size(model)
    axes = ["batch", "channels", *"zyx"[-len(patch_size) :]]
    size = patch_size
    if free:
        # Small, and nowhere 1 in the network: an axis of one voxel would be taken for a constant.
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        size = [4 * int(total) for total in np.prod(strides, axis=0)]
    example = torch.zeros(2, len(model.dataset_json["channel_names"]), *size)
    moving = [0, *range(2, example.ndim)] if free else [0]
    with _quiet():
        program = torch.onnx.export(
            model.network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in moving},),
            verbose=False,
        )
    exported = program.model_proto
    # The exporter names axes after its own symbols, or after how it has computed them.
    for value in (exported.graph.input[0], exported.graph.output[0]):
        for axis in moving:
            value.type.tensor_type.shape.dim[axis].dim_param = axes[axis]
    facts = {
        "classes": model.plan["panorgan"]["classes"],
        "orientation": model.plan["panorgan"]["orientation"],
        "axes": axes,
        "spacing_mm": configuration["spacing"],
        "patch_size": patch_size,
        "normalization": configuration["normalization_schemes"],
        "intensities": model.plan["foreground_intensity_properties_per_channel"],
        "checksum": model.card["checksum"],
        "phantom": model.card.get("phantom", False),
    }
    onnx.helper.set_model_props(exported, {"panorgan": json.dumps(facts)})
    exported.producer_name = "panorgan"
    onnx.checker.check_model(exported)
    onnx.save(exported, path)


def _difference(model: Model, path: Path, free: bool) -> float:
    """Largest difference of ONNX Runtime's logits from PyTorch's, on random numbers."""
    import onnxruntime

    size = _patch_size(model)
    if free:
        # Another batch and size than the exported example's, and odd.
        strides = configuration_of(model.plan)[1]["architecture"]["arch_kwargs"]["strides"]
        size = [2 * int(total) + 1 for total in np.prod(strides, axis=0)]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, len(model.dataset_json["channel_names"]), *size, generator=generator)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
    with torch.inference_mode():
        expected = model.network(image).numpy()
    if found.shape != expected.shape:
        return np.inf
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own inner affairs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
