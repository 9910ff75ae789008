"""Pickles that other programs wrote, read without running anything that they may hold.

A pickle names functions and calls them, so that reading one can do anything. Here only those
names are followed that tables, numbers, arrays and tensors need; any other refuses the file.
Importing this imports no torch.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from panorgan.problems import Problems

DAMAGED = "copy the whole model folder again"


def _bytes(text: str, encoding: str) -> bytes:
    """Protocols before 3 have no bytes: they write them as Latin-1 text and this call."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode(encoding)


def _bytearray(content: str | bytes = b"", encoding: str = "latin1") -> bytearray:
    """Not of a number, which would be so many bytes."""
    return bytearray(content, encoding) if isinstance(content, str) else bytearray(bytes(content))


class _Type:
    """NumPy's type of plain values.

    A real one would believe what a pickle says of it: that numbers are pointers, for example, and
    this of NumPy's own types everywhere.
    """

    __slots__ = ("dtype",)

    def __init__(self, code: str):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "?biufcSU":
            raise pickle.UnpicklingError(f"values of the type {code}")

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose values a pickle sets."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        version, shape, dtype, by_columns, data = state
        super().__setstate__((version, shape, dtype.dtype, by_columns, data))


def _dtype(code: str, *_: Any) -> _Type:
    return _Type(str(code))


def _scalar(dtype: _Type, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _reconstruct(*_: Any) -> np.ndarray:
    return _Array(0, np.uint8)


def _frombuffer(data: bytes, dtype: _Type, shape: Sequence[int], order: str) -> np.ndarray:
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)


_NUMPY = {
    ("numpy", "ndarray"): "ndarray",  # only told to _reconstruct
    ("numpy", "dtype"): _dtype,
    # NumPy 2 has renamed its core.
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("scalar", _scalar), ("_reconstruct", _reconstruct))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
_ADMITTED = {
    **{
        (module, name): value
        for module in ("builtins", "__builtin__")  # the second up to protocol 2
        for name, value in (("bytearray", _bytearray), ("complex", complex), ("set", set))
    },
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    **_NUMPY,
}
_SAFE_WITH_TORCH = [
    *((value, f"{module}.{name}") for (module, name), value in _NUMPY.items()),
    *((cls, f"{cls.__module__}.{cls.__name__}") for cls in (_Type, _Array)),
]
"""What torch's own restricted reader must know besides tensors, to read NumPy's numbers."""


class NotAdmitted(Exception):
    """A name that a harmless pickle does not need."""


class Unpickler(pickle._Unpickler):
    """Follows only the names of `admitted`; NotAdmitted at any other.

    It is Python's own reader in Python, as the compiled one makes room for as many objects as a
    pickle says that it has.
    """

    admitted: ClassVar[Mapping[tuple[str, str], Any]] = _ADMITTED

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise NotAdmitted(f"{module}.{name}")
        return self.admitted[module, name]

    def load_bytearray8(self) -> None:
        """Python's makes room before it reads."""
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}


def load_pickle(path: Path) -> Any:
    """A pickle of numbers, texts, NumPy arrays and containers of these.

    Raises
    ------
    Problems
        If the file is missing or damaged, or holds anything else; nothing of it is run then.
    """
    try:
        with open(path, "rb") as file:
            return Unpickler(file).load()
    except NotAdmitted as error:
        raise refusal(str(error), path) from None
    except Exception as error:  # broken bytes can stop the reader anywhere
        raise unreadable(error, path) from None


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, texts and containers of these, on the CPU.

    This is torch's own reader, which also knows files from before torch 1.6.

    Raises
    ------
    Problems
        As `load_pickle`.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_SAFE_WITH_TORCH):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes can stop the reader anywhere
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise refusal(found[1], path) from None
        raise unreadable(error, path) from None


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Says that a folder of nnU-Net is damaged where what was read of it is not as expected."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        cause = f"is damaged, or no model of nnU-Net ({type(error).__name__}: {reason})"
        raise Problems.one(cause, DAMAGED, file=folder) from None


def refusal(name: str, path: Path) -> Problems:
    """What is said of a file that asks for something which is not admitted."""
    cause = f"is a pickle that asks for {name}, which no model needs; it was not read further"
    return Problems.one(cause, "ask where it comes from, and do not open it otherwise", file=path)


def unreadable(error: Exception, path: Path) -> Problems:
    """What is said of a file that could not be read."""
    if "weights_only" in str(error):
        # torch's own words are about how to open the file all the same.
        cause = "cannot be read: it is damaged, or holds more than tensors; nothing of it was run"
        return Problems.one(cause, f"ask where it comes from; else {DAMAGED}", file=path)
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return Problems.one(f"cannot be read ({' '.join(reason.split())[:120]})", DAMAGED, file=path)
