"""What computes a network on tiles: OpenVINO or PyTorch, behind one protocol.

Importing this imports neither.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """A network, ready to compute on tiles.

    Attributes
    ----------
    name : str
        openvino or torch.
    precision : str
        What it computes in: fp32, bf16 or fp16.
    device : str
        cpu, or the GPU's name.
    """

    name: str
    precision: str
    device: str

    def scores(self, tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The logits of each tile, in order.

        Parameters
        ----------
        tiles
            (channels, *patch) float32, C-contiguous. They are taken as they are needed, only a few
            ahead.

        Yields
        ------
        numpy.ndarray
            (*patch, outputs), C-contiguous: float32, or uint16 with the bits of bfloat16. It is
            valid until the next one is asked for.
        """
        ...


def as_float32(found: np.ndarray) -> np.ndarray:
    """An engine's scores, whichever of both types they have."""
    if found.dtype == np.float32:
        return found
    return (found.astype(np.uint32) << 16).view(np.float32)
