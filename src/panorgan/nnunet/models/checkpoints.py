"""Checkpoints of torch read without torch, and without running anything that they may hold.

Since torch 1.6 a checkpoint is a zip archive of a pickle, ``data.pkl``, and of a file for each
storage: the values that one or several tensors share. The pickle only says where in a storage a
tensor lies. So tensors that nobody asks for, as an optimiser's, are not read at all.
"""

import math
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from panorgan.nnunet.models.pickles import NotAdmitted, Unpickler, refusal, unreadable

BFLOAT16 = "bfloat16"
_STORAGES = {
    "BFloat16Storage": BFLOAT16,
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
"""Torch's classes of typed storages, and NumPy's type of each."""


class _Storage(NamedTuple):
    """A file of the archive. Unlike an object with a dictionary, a pickle cannot change it."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """Where a tensor's values lie, counted in values."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _device(*parts: Any) -> str:
    return ":".join(map(str, parts))


class _CheckpointUnpickler(Unpickler):
    admitted: ClassVar = {
        **Unpickler.admitted,
        **{("torch", name): dtype for name, dtype in _STORAGES.items()},
        ("torch.storage", "UntypedStorage"): "uint8",
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch", "Size"): tuple,
        ("torch", "device"): _device,
    }

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, count = identity
        if kind != "storage" or dtype not in {*_STORAGES.values()} or type(count) is not int:
            raise ValueError("its storages are not torch's")
        return _Storage(str(key), dtype, count)


def read_checkpoint(path: Path, wanted: str) -> dict[str, Any]:
    """What `torch.save` wrote: numbers, texts, containers of these, and some of its tensors.

    Parameters
    ----------
    path
        A zip archive as torch 1.6 and later write it.
    wanted
        Key of the dictionary whose tensors are read. They become arrays of the same type, bfloat16
        of float32; several names of one tensor share one array. Tensors elsewhere stay unread.

    Raises
    ------
    Problems
        If the file is missing or damaged, or asks for anything else; nothing of it is run then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Archive(archive, path.stat().st_size)
            content = reader.content()
            if not isinstance(content, dict) or not isinstance(content[wanted], Mapping):
                raise ValueError(f"it has no {wanted}")
            content[wanted] = {
                str(name): reader.array(tensor) for name, tensor in content[wanted].items()
            }
            return content
    except NotAdmitted as error:
        raise refusal(str(error), path) from None
    except zipfile.BadZipFile as error:
        if "not a zip file" not in str(error):
            raise unreadable(error, path) from None
        error = ValueError("no whole zip archive, as which torch has saved since 1.6")
        raise unreadable(error, path) from None
    except Exception as error:  # broken bytes can stop the reader anywhere
        raise unreadable(error, path) from None


class _Archive:
    """A checkpoint's archive. ValueError where its parts do not fit each other."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.archive = archive
        self.left = size
        """Bytes that tensors may still hold: no file has more than its own."""
        names = archive.namelist()
        pickles = [name for name in names if name.partition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len({*names}) < len(names):
            raise ValueError("the archive is not torch's")
        self.root = pickles[0].partition("/")[0]
        order = "little"
        if f"{self.root}/byteorder" in names:
            order = self._file("byteorder").read(6).decode()
        self.order = {"little": "<", "big": ">"}[order]
        self.bytes: dict[str, np.ndarray] = {}
        self.arrays: dict[_Tensor, np.ndarray] = {}

    def content(self) -> Any:
        with self._file("data.pkl") as file:
            return _CheckpointUnpickler(BytesIO(file.read())).load()

    def _file(self, name: str) -> zipfile.ZipExtFile:
        entry = self.archive.getinfo(f"{self.root}/{name}")
        # Torch compresses nothing, so that nothing can be larger than its file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"its {name} is compressed, which torch does not do")
        return self.archive.open(entry)

    def array(self, tensor: Any) -> np.ndarray:
        """A tensor's values, C-contiguous and writable, in this machine's byte order."""
        if not isinstance(tensor, _Tensor) or not isinstance(tensor.storage, _Storage):
            raise ValueError("not all of its weights are tensors")
        tensor = tensor._replace(size=tuple(tensor.size), stride=tuple(tensor.stride))
        if tensor not in self.arrays:
            self.arrays[tensor] = self._read(tensor)
        return self.arrays[tensor]

    def _read(self, tensor: _Tensor) -> np.ndarray:
        storage, offset, size, stride = tensor
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a tensor has no size")
        values = self._values(storage)
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count > len(values) or (count and last >= len(values)):
            raise ValueError("a tensor reaches beyond its storage")
        self.left -= count * values.itemsize
        if self.left < 0:
            raise ValueError("its tensors hold more than the file")
        strides = [step * values.itemsize for step in stride]
        array = np.lib.stride_tricks.as_strided(values[offset:], size, strides)
        if storage.dtype == BFLOAT16:  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(size)

    def _values(self, storage: _Storage) -> np.ndarray:
        """All values of a storage."""
        dtype = np.dtype("uint16" if storage.dtype == BFLOAT16 else storage.dtype)
        if storage.key not in self.bytes:
            with self._file(f"data/{storage.key}") as file:
                # A copy: what a zip gives cannot be written to.
                self.bytes[storage.key] = np.frombuffer(bytearray(file.read()), np.uint8)
        found = self.bytes[storage.key]
        if storage.count * dtype.itemsize != len(found):
            raise ValueError(f"its storage {storage.key} has not the size that it should have")
        return found.view(dtype.newbyteorder(self.order))
