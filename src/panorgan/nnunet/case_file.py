"""A preprocessed case in one file, of which a training reads only what it takes.

``CASE.b2nd`` holds the image and the label as Blosc2 frames, one after the other; then, for each
class in turn, the sampled places as int16 (n, 4); at the end a JSON text that says how much there
is of each, and its length in 8 bytes.
"""

import json
import os
from itertools import accumulate
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from panorgan.io.writing import replacing
from panorgan.nnunet.models.pickles import load_pickle
from panorgan.nnunet.preprocess import Preprocessed

ENDING = ".b2nd"
LENGTH = 8
"""Bytes of the text's length."""


def save(folder: str | Path, case: str, preprocessed: Preprocessed) -> None:
    """Write a labelled case; equal cases give equal bytes.

    Raises
    ------
    Stop
        If the disk is full.
    """
    frames = [
        _frame(array, preprocessed.patch_size) for array in (preprocessed.data, preprocessed.seg)
    ]
    places = preprocessed.properties["class_locations"]
    about = {
        "frames": [len(frame) for frame in frames],
        "places": {str(value): len(found) for value, found in places.items()},
    }
    text = json.dumps(about).encode()
    with replacing(Path(folder, case + ENDING)) as temporary, open(temporary, "wb") as file:
        for part in (*frames, *(found.tobytes() for found in places.values()), text):
            file.write(part)
        file.write(len(text).to_bytes(LENGTH, "little"))


def _frame(array: np.ndarray, patch_size: tuple[int, ...]) -> bytes:
    """An array compressed in pieces that suit patches of a size, as nnU-Net cuts it."""
    blocks, chunks = comp_blosc2_params(array.shape, patch_size, array.itemsize)
    # One thread: several would store a chunk's blocks in the order in which they finish.
    # nnU-Net's level 5 takes four times as long and saves 4 %; both read equally fast.
    compression = {
        "codec": blosc2.Codec.LZ4HC,
        "clevel": 1,
        "filters": [blosc2.Filter.SHUFFLE],
        "nthreads": 1,
    }
    packed = blosc2.asarray(
        array, chunks=chunks, blocks=blocks, cparams=compression, contiguous=True
    )
    return packed.to_cframe()


def load(folder: str | Path, case: str) -> tuple[Any, Any, None, dict[str, Any]]:
    """What nnU-Net's loader asks for: image and label (channel, z, y, x), compressed until sliced.

    The last one has `class_locations`, as `Preprocessed` has them.
    """
    path, apart = Path(folder, case + ENDING), Path(folder, f"{case}_seg{ENDING}")
    if apart.exists():  # of an earlier version: nnU-Net's files
        return _opened(path), _opened(apart), None, load_pickle(path.with_suffix(".pkl"))
    with open(path, "rb") as file:
        file.seek(-LENGTH, os.SEEK_END)
        length = int.from_bytes(file.read(LENGTH), "little")
        file.seek(-LENGTH - length, os.SEEK_END)
        about = json.loads(file.read(length))
        counts = about["places"].values()
        file.seek(sum(about["frames"]))
        found = np.fromfile(file, np.int16, 4 * sum(counts)).reshape(-1, 4)
    places = np.split(found, [*accumulate(counts)][:-1])
    data, seg = (_opened(path, offset) for offset in (0, about["frames"][0]))
    locations = dict(zip(map(int, about["places"]), places, strict=True))
    return data, seg, None, {"class_locations": locations}


def _opened(path: Path, offset: int = 0) -> Any:
    return blosc2.open(str(path), mode="r", offset=offset, dparams={"nthreads": 1}, mmap_mode="r")
