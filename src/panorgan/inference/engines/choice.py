"""Which engine computes a network here, and in which precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from panorgan.config.registry import AUTO, OPENVINO, TORCH
from panorgan.inference.engines import Engine
from panorgan.io.gpus import gpus_here
from panorgan.io.processor import has_bf16
from panorgan.nnunet.plans import configuration_of, output_count
from panorgan.problems import Problems

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Way:
    """How a network is computed.

    Attributes
    ----------
    engine
        openvino or torch.
    version
        Of that package.
    device
        cpu or cuda.
    precision
        fp32, bf16 or fp16.
    """

    engine: str
    version: str
    device: str
    precision: str


def choose(engine: str = AUTO, device: str = AUTO, precision: str = AUTO) -> Way:
    """The way to compute a network on this machine with what is installed.

    On a GPU that is torch. On a CPU it is OpenVINO if that is installed, in bf16 where the
    processor computes in it, else in fp32.

    Parameters
    ----------
    engine, device, precision
        As in the config and on the command line; auto leaves it to this function.

    Raises
    ------
    Problems
        If what is asked for cannot be had here.
    """
    has = {name: find_spec(name) is not None for name in (OPENVINO, TORCH)}
    if engine != AUTO and not has[engine]:
        extra = "predict" if engine == OPENVINO else "train"
        raise Problems.one(f"{engine} is not installed", f"pip install 'panorgan[{extra}]'")
    if not any(has.values()):
        cause = "neither openvino nor torch is installed"
        raise Problems.one(cause, "pip install 'panorgan[predict]'")
    if device == CUDA and engine == OPENVINO:
        cause = "openvino computes on the CPU only here"
        raise Problems.one(cause, "take device auto or cpu, or engine torch")
    if device == CUDA and not has[TORCH]:
        cause = "a GPU is used by torch, which is not installed"
        raise Problems.one(cause, "pip install 'panorgan[train]', or take device cpu")
    if engine != OPENVINO and has[TORCH] and (device != CPU) and _sees_gpu(device):
        from panorgan.nnunet.devices import pick_device, resolve_precision

        found = pick_device(device)
        if found.type == CUDA:
            return Way(TORCH, version(TORCH), CUDA, resolve_precision(precision, found))
    if precision == "fp16":
        raise Problems.one("precision fp16 needs a GPU", "take precision auto")
    if precision == AUTO:
        precision = "bf16" if has_bf16() else "fp32"
    if engine == AUTO:
        engine = OPENVINO if has[OPENVINO] else TORCH
    return Way(engine, version(engine), CPU, precision)


def _sees_gpu(device: str) -> bool:
    """Whether torch has to be asked: a machine without the driver's files has no GPU."""
    return device == CUDA or bool(gpus_here())


def start_engine(
    way: Way, plan: Mapping[str, Any], tensors: Mapping[str, np.ndarray], threads: int
) -> Engine:
    """A network ready to compute.

    Parameters
    ----------
    way
        As `choose` gives it.
    plan, tensors
        Of a model, as `panorgan.nnunet.models.files.read_model` gives them.
    threads
        CPU threads.

    Raises
    ------
    Problems
        If this engine cannot compute the network.
    """
    if way.engine == OPENVINO:
        from panorgan.inference.engines.openvino import OpenVINOEngine

        configuration = configuration_of(plan)[1]
        architecture, patch_size = configuration["architecture"], configuration["patch_size"]
        channels = 1  # `read_model` admits no other number
        try:
            return OpenVINOEngine(
                *(architecture, tensors, channels, output_count(plan), patch_size),
                *(way.precision, threads),
            )
        except ValueError as error:
            cure = "take engine torch" if find_spec(TORCH) else "pip install 'panorgan[train]'"
            raise Problems.one(f"openvino cannot compute its network ({error})", cure) from None
    from panorgan.inference.engines.torch import TorchEngine

    return TorchEngine(plan, tensors, way.device, way.precision, threads)
