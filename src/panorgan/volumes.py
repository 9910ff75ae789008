"""The one reader and writer of volumes: NIfTI in, the same geometry out.

Arrays are (z, y, x), as SimpleITK gives them, in the order in which the file stores them. What
readers of common libraries pass over in silence is refused here: a damaged or shortened gzip, NaN,
sheared or contradictory geometry.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel import orientations

from panorgan.tables import replacing

HEADER_BYTES = 348
DATA_OFFSET = 352
MAX_SHEAR = 3e-4
"""Largest scalar product of two axes' unit vectors; SimpleITK refuses more, too."""
MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in a header's unit of length: unknown, metre, millimetre, micrometre."""
GRID_TOLERANCE_MM = 0.01
COPY_AGAIN = "copy it again from its source"


class VolumeError(Exception):
    """A volume that cannot be used: what is wrong and what to do."""

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a volume's voxels are.

    Parameters
    ----------
    shape
        Voxels along (z, y, x) of the stored array.
    spacing
        mm along the same axes.
    affine
        4×4, from voxel index (x, y, z) to RAS world coordinates in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray

    @cached_property
    def orientation(self) -> str:
        """Anatomical directions of the stored x, y and z axes, such as ``LPS``."""
        return "".join(nib.aff2axcodes(self.affine))

    @cached_property
    def axes(self) -> np.ndarray:
        """nibabel's orientation array: where each stored axis goes in RAS, and its sign."""
        return orientations.io_orientation(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000

    def difference(self, other: "Grid") -> str:
        """What distinguishes two grids, as text; empty if every corner agrees to 0.01 mm."""
        if self.shape != other.shape:
            return f"size {_by(self.shape)} against {_by(other.shape)} voxels (z×y×x)"
        if not np.allclose(self.spacing, other.spacing, rtol=1e-3, atol=0):
            return f"spacing {_by(self.spacing)} against {_by(other.spacing)} mm (z×y×x)"
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        corners[:, :3] *= np.array(self.shape[::-1]) - 1
        shift = np.abs(corners @ (self.affine - other.affine).T).max()
        if shift <= GRID_TOLERANCE_MM:
            return ""
        here, there = self.affine[:3, 3], other.affine[:3, 3]
        kind = "direction"
        if np.allclose(self.affine[:3, :3], other.affine[:3, :3], rtol=0, atol=1e-5):
            kind = f"origin {_by(here, ', ')} against {_by(there, ', ')} mm"
        return f"{kind}, up to {shift:.2f} mm apart"


def _by(numbers: Sequence[float], between: str = "×") -> str:
    return between.join(f"{number:.6g}" for number in numbers)


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    Parameters
    ----------
    array
        (z, y, x) in stored order: int16 or float32 HU of an image, uint8 of a label map.
    grid
        Their geometry.
    header
        The NIfTI header that it was read from; a label written for this volume copies it.
    """

    array: np.ndarray
    grid: Grid
    header: nib.Nifti1Header


def read_image(path: str | Path) -> Volume:
    """Read a CT: int16 if all values are whole and fit, else float32.

    Raises
    ------
    VolumeError
        If the file cannot be read whole and without doubt about its geometry, or has NaN.
    """
    stored, header = _read(path)
    grid = _grid(header)
    array = stored.reshape(grid.shape)
    slope, intercept = (float(header[key]) for key in ("scl_slope", "scl_inter"))
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise VolumeError(f"{count} voxels are NaN or infinite", "replace them, e.g. by -1024")
    if array.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        low, high = (int(edge) for edge in (array.min(), array.max()))
        ends = sorted((low * int(slope) + int(intercept), high * int(slope) + int(intercept)))
        if -32768 <= ends[0] and ends[1] <= 32767:
            if (slope, intercept) == (1.0, 0.0):
                return Volume(array.astype(np.int16), grid, header)
            scaled = array.astype(np.int32) * int(slope) + int(intercept)
            return Volume(scaled.astype(np.int16), grid, header)
    values = array * slope + intercept if (slope, intercept) != (1.0, 0.0) else array
    if -32768 <= values.min() and values.max() <= 32767:
        whole = values.astype(np.int16)
        if np.array_equal(whole, values):
            return Volume(whole, grid, header)
    return Volume(values.astype(np.float32), grid, header)


def read_label(path: str | Path) -> Volume:
    """Read a label map as uint8.

    Raises
    ------
    VolumeError
        As `read_image`, and if a value is not whole or not in 0…255.
    """
    stored, header = _read(path)
    grid = _grid(header)
    array = stored.reshape(grid.shape)
    slope, intercept = (float(header[key]) for key in ("scl_slope", "scl_inter"))
    if slope not in (0.0, 1.0) or intercept != 0.0:
        if slope != 0 and np.isfinite([slope, intercept]).all():
            array = array * slope + intercept
    cure = "export it again as whole numbers; an image must be named CASE_0000.nii.gz"
    if array.dtype.kind == "f":
        broken = int((~np.isfinite(array)).sum())
        if broken:
            raise VolumeError(f"{broken} label values are NaN or infinite", cure)
        fractions = int((array != np.rint(array)).sum())
        if fractions:
            raise VolumeError(f"{fractions} label values are not whole numbers", cure)
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if low < 0 or high > 255:
            raise VolumeError(f"label values from {low:g} to {high:g} do not fit 0…255", cure)
    return Volume(array.astype(np.uint8), grid, header)


def read_grid(path: str | Path) -> Grid:
    """Read the geometry alone; voxels are neither read nor checked."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            file.seek(0)
            raw = (
                igzip.open(file).read(HEADER_BYTES)
                if start == b"\x1f\x8b"
                else file.read(HEADER_BYTES)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise VolumeError(f"cannot be read: {error}", COPY_AGAIN) from None
    return _grid(_header(raw))


def _read(path: str | Path) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Stored values as a flat array, and the header."""
    raw = _bytes(path)
    header = _header(raw)
    dtype = header.get_data_dtype()
    shape = [int(size) for size in header["dim"][1:4]]
    offset = int(header["vox_offset"])
    if not HEADER_BYTES <= offset <= len(raw):
        raise VolumeError(f"its voxels would start at byte {offset}", COPY_AGAIN)
    count = int(np.prod(shape, dtype=np.int64))
    if len(raw) - offset < count * dtype.itemsize:
        cause = f"has {len(raw) - offset} bytes of voxels, its header says {count * dtype.itemsize}"
        raise VolumeError(cause, COPY_AGAIN)
    return np.frombuffer(raw, dtype, count, offset), header


def _bytes(path: str | Path) -> bytes:
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise VolumeError("there is no such file", "check the path") from None
    except IsADirectoryError:
        raise VolumeError("is a folder, not a file", "name the file") from None
    except OSError as error:
        raise VolumeError(f"cannot be read: {error.strerror}", "check its permissions") from None
    if not raw:
        raise VolumeError("is empty", COPY_AGAIN)
    if raw[:2] != b"\x1f\x8b":
        if str(path).endswith(".gz"):
            raise VolumeError("is named .gz, but is not compressed", "rename it or compress it")
        return raw
    try:
        return igzip.decompress(raw)
    except EOFError:
        raise VolumeError("is truncated: its gzip stream ends too early", COPY_AGAIN) from None
    except (igzip.BadGzipFile, isal_zlib.error, zlib.error, OSError) as error:
        raise VolumeError(f"is damaged: {_gzip_fault(error)}", COPY_AGAIN) from None


def _gzip_fault(error: Exception) -> str:
    text = str(error)
    if re.search("crc|checksum|length", text, re.IGNORECASE):
        return "wrong gzip checksum or length"
    return f"its gzip stream is broken ({text})"


def _header(raw: bytes) -> nib.Nifti1Header:
    """A header whose fields make sense, in the byte order of the file."""
    if len(raw) < HEADER_BYTES:
        raise VolumeError(f"is only {len(raw)} bytes long", COPY_AGAIN)
    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    if 540 in sizes:
        raise VolumeError("is NIfTI-2", "convert it to NIfTI-1")
    magic = raw[344:348]
    if HEADER_BYTES in sizes and magic == b"ni1\0":
        raise VolumeError("is the header of a .hdr/.img pair", "convert it to .nii.gz")
    if HEADER_BYTES not in sizes or magic != b"n+1\0":
        raise VolumeError("is no NIfTI file (wrong magic)", "convert it to NIfTI, .nii.gz")
    order = "<" if int.from_bytes(raw[:4], "little") == HEADER_BYTES else ">"
    header = nib.Nifti1Header(raw[:HEADER_BYTES], endianness=order, check=False)
    dimensions = int(header["dim"][0])
    if dimensions != 3:
        if not 1 <= dimensions <= 7:
            raise VolumeError(f"its header says {dimensions} dimensions", COPY_AGAIN)
        shape = _by(header["dim"][1 : dimensions + 1])
        raise VolumeError(f"is not 3D, but {dimensions}D ({shape})", "store a single 3D volume")
    if (header["dim"][1:4] <= 0).any():
        raise VolumeError(f"has a dimension of zero ({_by(header['dim'][1:4])})", COPY_AGAIN)
    try:
        dtype = header.get_data_dtype()
    except nib.spatialimages.HeaderDataError:
        cause = f"has voxels of an unknown type ({int(header['datatype'])})"
        raise VolumeError(cause, "convert it to int16") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = "colour" if dtype.names else str(dtype)
        raise VolumeError(f"has {kind} voxels, not one number each", "convert it to int16")
    return header


def _grid(header: nib.Nifti1Header) -> Grid:
    """The geometry that a header tells, refused where it is contradictory or not a grid.

    The sform counts if its code is above 0, else the qform.
    """
    shape = tuple(int(size) for size in header["dim"][1:4])
    pixdim = header["pixdim"][1:4].astype(np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise VolumeError(f"has a spacing of {_by(pixdim)} mm", "set its true spacing")
    if header["sform_code"] > 0:
        affine = header.get_sform()
    elif header["qform_code"] > 0:
        try:
            affine = header.get_qform()
        except (ValueError, nib.spatialimages.HeaderDataError):
            raise VolumeError("has an impossible qform", "set its orientation anew") from None
    else:
        cause = "has no orientation (qform and sform codes are 0)"
        raise VolumeError(cause, "set its orientation, e.g. in 3D Slicer, and save it again")
    affine = affine.astype(np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (lengths == 0).any():
        raise VolumeError("has an impossible orientation matrix", "set its orientation anew")
    if not np.allclose(lengths, pixdim, rtol=1e-3, atol=0):
        cause = f"its spacing is {_by(pixdim)} in pixdim and {_by(lengths)} in its orientation"
        raise VolumeError(cause, "save it again with one true spacing")
    units = affine[:3, :3] / lengths
    products = np.abs(units.T @ units - np.eye(3))
    if products.max() > MAX_SHEAR:
        cause = f"its axes are sheared by {products.max():.2g} (at most {MAX_SHEAR:g})"
        raise VolumeError(cause, "resample it to a grid with right angles")
    scale = MM.get(int(header["xyzt_units"]) & 7, 1.0)
    affine[:3] *= scale
    spacing = tuple(float(size) * scale for size in pixdim)
    return Grid(shape[::-1], spacing[::-1], affine)


def write_label(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write a uint8 label map (z, y, x) on exactly the grid of `like`, whole or not at all.

    Raises
    ------
    ValueError
        If the array has another shape than the grid or values that uint8 cannot hold.
    """
    values = np.asarray(array)
    if values.dtype != np.uint8 and ((values < 0).any() or (values > 255).any()):
        raise ValueError("label values must be in 0…255")
    _write(path, values.astype(np.uint8, copy=False), like)


def write_image(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write an image (z, y, x), int16 or float32, on exactly the grid of `like`."""
    if array.dtype not in (np.int16, np.float32):
        raise ValueError(f"an image is int16 or float32, not {array.dtype}")
    _write(path, array, like)


def _write(path: str | Path, array: np.ndarray, like: Volume) -> None:
    if array.shape != like.grid.shape:
        raise ValueError(f"array {array.shape} is not on the grid {like.grid.shape}")
    header = (
        like.header.as_byteswapped("<") if like.header.endianness != "<" else like.header.copy()
    )
    header.set_data_dtype(array.dtype.newbyteorder("<"))
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"] = header["cal_max"] = 0
    header["vox_offset"], header["magic"] = DATA_OFFSET, b"n+1"
    values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    raw = b"".join((header.binaryblock, bytes(DATA_OFFSET - HEADER_BYTES), values.tobytes()))
    if str(path).endswith(".gz"):
        raw = igzip.compress(raw, compresslevel=1, mtime=0)
    with replacing(path) as temporary:
        temporary.write_bytes(raw)


def new_volume(
    array: np.ndarray, spacing: Sequence[float], affine: np.ndarray | None = None
) -> Volume:
    """A volume that was not read from a file, such as a synthetic one.

    Parameters
    ----------
    array
        (z, y, x), int16, float32 or uint8.
    spacing
        mm (z, y, x).
    affine
        4×4 from voxel index (x, y, z) to RAS world coordinates; default: RAS axes at the origin.
    """
    if affine is None:
        affine = np.diag([*spacing[::-1], 1.0])
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    header.set_zooms(spacing[::-1])
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    return Volume(array, _grid(header), header)


def to_canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A stored (z, y, x) array with its axes permuted and flipped to RAS; a view."""
    return orientations.apply_orientation(array.T, grid.axes).T


def from_canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
    """The inverse of `to_canonical`; a view."""
    back = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), grid.axes)
    return orientations.apply_orientation(array.T, back).T


def canonical_shape(grid: Grid) -> tuple[int, int, int]:
    """Shape (z, y, x) of the canonical array."""
    return _canonical(grid.shape, grid)


def canonical_spacing(grid: Grid) -> tuple[float, float, float]:
    """mm (z, y, x) of the canonical array."""
    return _canonical(grid.spacing, grid)


def _canonical(numbers: Sequence, grid: Grid) -> tuple:
    moved = [None] * 3
    for number, axis in zip(numbers[::-1], grid.axes[:, 0].astype(int), strict=True):
        moved[axis] = number
    return tuple(moved[::-1])


def voxel_hash(volume: Volume) -> str:
    """blake2b (16 bytes, hex) of the canonical voxels and their shape.

    Equal for the same image stored in another orientation or with another scaling.
    """
    canonical = np.ascontiguousarray(to_canonical(volume.array, volume.grid))
    digest = blake2b(str((canonical.shape, canonical.dtype.str)).encode(), digest_size=16)
    digest.update(canonical.data)
    return digest.hexdigest()
