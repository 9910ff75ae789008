"""Pickles that other programs wrote, read without running anything that they may hold.

A pickle names functions and calls them, so that reading one can do anything. Here only those
names are followed that tables, numbers, arrays and tensors need; any other refuses the file.
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric

from panorgan.problems import Problems

DAMAGED = "copy the whole model folder again"


def _bytes(text: str, encoding: str) -> bytes:
    """Protocols before 3 have no bytes: they write them as Latin-1 text and this call."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode(encoding)


_NUMPY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    # NumPy 2 has renamed its core.
    **{
        (f"numpy.{core}.multiarray", function.__name__): function
        for core in ("core", "_core")
        for function in (multiarray.scalar, multiarray._reconstruct)
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},
}
_ADMITTED = {
    **{
        (module, cls.__name__): cls
        for module in ("builtins", "__builtin__")  # the second up to protocol 2
        for cls in (bytearray, complex, set)
    },
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    **_NUMPY,
}
_SAFE_WITH_TORCH = [
    *((value, f"{module}.{name}") for (module, name), value in _NUMPY.items()),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdSU"},
]
"""What torch's own restricted reader must know besides tensors, to read NumPy's numbers."""


class _NotAdmitted(Exception):
    """A name that a harmless pickle does not need."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _NotAdmitted(f"{module}.{name}")
        return _ADMITTED[module, name]


def load_pickle(path: Path) -> Any:
    """A pickle of numbers, texts, NumPy arrays and containers of these.

    Raises
    ------
    Problems
        If the file is missing or damaged, or holds anything else; nothing of it is run then.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file).load()
    except _NotAdmitted as error:
        raise _refusal(str(error), path) from None
    except Exception as error:  # broken bytes can stop the reader anywhere
        raise _unreadable(error, path) from None


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, texts and containers of these, on the CPU.

    Raises
    ------
    Problems
        As `load_pickle`.
    """
    try:
        with torch.serialization.safe_globals(_SAFE_WITH_TORCH):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes can stop the reader anywhere
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _refusal(found[1], path) from None
        raise _unreadable(error, path) from None


def _refusal(name: str, path: Path) -> Problems:
    cause = f"is a pickle that asks for {name}, which no model needs; it was not read further"
    return Problems.one(cause, "ask where it comes from, and do not open it otherwise", file=path)


def _unreadable(error: Exception, path: Path) -> Problems:
    if "weights_only" in str(error):
        # torch's own words are about how to open the file all the same.
        cause = "cannot be read: it is damaged, or holds more than tensors; nothing of it was run"
        return Problems.one(cause, f"ask where it comes from; else {DAMAGED}", file=path)
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return Problems.one(f"cannot be read ({' '.join(reason.split())[:120]})", DAMAGED, file=path)
