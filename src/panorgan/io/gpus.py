"""The NVIDIA GPUs of this machine, without any library of theirs."""

import glob
import os


def gpu_files() -> list[str]:
    """What the driver shows of the machine's NVIDIA GPUs, one file each."""
    return glob.glob("/dev/nvidia[0-9]*")


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        named = [gpu.strip() for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return [gpu for gpu in named if gpu not in ("", "-1", "NoDevFiles")]
    return [str(index) for index, _ in enumerate(gpu_files())]


def gpus_here() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use and that the driver shows.

    A scheduler's number alone is no GPU.
    """
    return visible_gpus() if gpu_files() else []
