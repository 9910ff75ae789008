"""Where networks run and in which precision."""

import errno
from contextlib import AbstractContextManager, nullcontext

import torch

from panorgan.io.gpus import gpus_here
from panorgan.io.processor import has_bf16
from panorgan.problems import Problem, Problems

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

GPU_IS_FULL = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # What cuDNN's search says if no algorithm has room.
    "unable to find an engine to execute this computation",
)
MEMORY_IS_FULL = ("can't allocate memory", "Cannot allocate memory", "MemoryError")
"""What messages of torch's without a type of their own say."""


def pick_device(name: str | torch.device) -> torch.device:
    """The device of a name: auto (the GPU if there is one, else the CPU), cpu or cuda.

    Raises
    ------
    Problems
        If cuda is asked for and there is no usable GPU, or there is one that PyTorch cannot use:
        days of a training on the CPU by mistake would be worse than an end. For torch 2.9, which
        would take such days for another reason (pytorch/pytorch#166122).
    """
    if torch.__version__.startswith("2.9."):
        cause = f"torch {torch.__version__} is about four times slower at 3D convolutions in half "
        cause += "precision than the releases before and after it"
        raise Problems.one(cause, "install another, such as the one of envs/requirements.txt")
    if name == "auto":
        if (gpus := gpus_here()) and not torch.cuda.is_available():
            cause = f"there is a GPU ({', '.join(gpus)}), but PyTorch cannot use it"
            cure = (
                "look at nvidia-smi and for a PyTorch that fits the driver (python -m "
                "torch.utils.collect_env), or run on the CPU: CUDA_VISIBLE_DEVICES= (empty)"
            )
            raise Problems.one(cause, cure)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Problems.one("device cuda: PyTorch finds no GPU", "use device auto or cpu")
    return device


def resolve_precision(requested: str, device: torch.device) -> str:
    """The precision to compute in: fp32, bf16 or fp16.

    auto is bf16 where the hardware computes in it, else fp16 on a GPU and fp32 on a CPU, where
    emulated bf16 would be slower. Anything else is what it says.

    Raises
    ------
    Problems
        If fp16 is asked for on a CPU, or bf16 on a GPU that does not compute in it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if requested == "auto":
            return "bf16" if supported else "fp16"
        if requested == "bf16" and not supported:
            cause = f"{torch.cuda.get_device_name(device)} does not compute in bf16"
            raise Problems.one(cause, "use a newer GPU, or set precision to fp16 in the config")
        return requested
    if requested == "fp16":
        raise Problems.one("precision fp16 needs a GPU", "take precision auto")
    if requested == "auto":
        return "bf16" if has_bf16() else "fp32"
    return requested


def resolve_augmentation(requested: str) -> str:
    """Where training patches are changed: ``workers`` (the processes that load) or ``device``.

    auto is the loaders: no figure shows yet that a GPU is faster with the other.
    """
    return "workers" if requested == "auto" else requested


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A block in which networks compute in a resolved precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def memory_problem(error: BaseException, case: str = "") -> Problem | None:
    """What an error says about memory to whoever set up a training; None if nothing.

    Parameters
    ----------
    error
        Any error.
    case
        The case at which it came, if one is to blame.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(part in text for part in GPU_IS_FULL):
        cure = (
            "lower batch_size or patch_size of this network in the config, or free the GPU: "
            "nvidia-smi tells what else runs on it"
        )
        return Problem(case, "", "the GPU's memory does not suffice", cure)
    full = isinstance(error, MemoryError) or any(part in text for part in MEMORY_IS_FULL)
    if full or getattr(error, "errno", None) == errno.ENOMEM:
        cure = (
            "give the job more memory (mem_mb), or lower training.workers or batch_size of this "
            "network in the config"
        )
        return Problem(case, "", "the computer's memory does not suffice", cure)
    return None
