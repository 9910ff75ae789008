"""The one reader and writer of volumes: NIfTI-1 files, `.nii` or `.nii.gz`.

Arrays are (z, y, x) in the order in which they are stored, spacings (z, y, x) mm. A file is read
whole or refused, with what other readers pass over in silence: a damaged or shortened gzip, NaN,
contradictory geometry. Networks see volumes in one orientation, RAS; `to_canonical` and
`from_canonical` permute and flip axes, nothing else.
"""

import io
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from gzip import BadGzipFile
from hashlib import blake2b
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError
from nibabel import orientations
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from panorgan.io.writing import replacing

HEADER_BYTES = 348
DATA_OFFSET = 352  # of a file without extensions
GZIP_MAGIC = b"\x1f\x8b"
GZIP_MOST = 1032  # a byte of gzip data never stands for more
BLOCK = 1 << 20  # bytes to decompress at a time: they stay in the processor's cache
DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
COLOUR, COMPLEX = {128, 2304}, {32, 1792, 2048}
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, mm, micrometre; anything else is mm
LAST_CODE = 5  # of orientations; with another, programs take it for none, or for any
GEOMETRY_FIELDS = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)

MAX_SHEAR = 3e-4
"""Largest dot product of two axes' unit vectors; SimpleITK's bound too."""

SINGULAR = 1e-6
"""Below this determinant three axes' unit vectors lie in a plane."""

MAX_SPACING_ERROR = 1e-3
"""Relative; between pixdim and the affine, and between two spacings that count as equal."""

GRID_TOLERANCE_MM = 0.05
"""How far a corner may lie from the same corner of another grid: above what float32 headers lose
at 500 mm, a tenth of the smallest voxels."""

QUATERNION_ERROR = 5e-7
"""What is lost of the square of a quaternion's part that is not stored: float32 rounds, and readers
take less for 0. Where that part is small, as in volumes stored as LPS, that turns axes by twice the
root of it."""

MAX_QUATERNION = 1 + 1e-3
"""Length up to which a quaternion is one of length 1 that was rounded."""

SPACING_MM, MAX_PIXEL_MM = (0.1, 20.0), 12.0
"""What spacings a CT of a body can have: its slices may be 20 mm apart, its pixels are smaller."""

MAX_LENGTH_MM, MAX_WIDTH_MM = 2500.0, 1200.0
"""What it can measure along one axis, and along the others."""

FINE_MM, MIN_FINE_WIDTH_MM = 0.45, 60.0
"""Below this width, pixels so fine are no crop, but a spacing ten times too small."""

MAX_HU = 65535
"""Of either sign: what 16 bits hold. Scales that are extended for metal end at 31,000."""

NEARLY_WHOLE = 0.01
"""How far scaling and saving again takes a label from its whole number."""

COPY_AGAIN = "copy or download it again"
MEND_HEADER = "mend the header, or convert the volume again from its source"


class VolumeError(Exception):
    """A file that cannot be used, with what is wrong and what to do about it."""

    def __init__(self, cause: str, cure: str):
        super().__init__(f"{cause}; {cure}")
        self.cause = cause
        self.cure = cure


class Sheared(VolumeError):
    """A file whose axes are not perpendicular."""


class TwoPlaces(VolumeError):
    """A file whose sform and qform place its voxels differently."""


# ---------------------------------------------------------------------------------------------
# Geometry


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a volume's voxels lie.

    Attributes
    ----------
    shape : (z, y, x) int
    spacing : (z, y, x) float
        mm, from the header's pixdim.
    affine : (4, 4) float64
        From a voxel's index (x, y, z) to RAS mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: np.ndarray

    @cached_property
    def axes(self) -> np.ndarray:
        """For each stored axis x, y, z the RAS axis along which it runs and its sign (3, 2)."""
        return orientations.io_orientation(self.affine)

    @property
    def orientation(self) -> str:
        """Where the stored axes x, y, z point, such as ``LPS``."""
        return "".join(orientations.ornt2axcodes(self.axes))

    @property
    def origin(self) -> np.ndarray:
        """Centre of the first voxel, RAS mm (3,)."""
        return self.affine[:3, 3]

    @property
    def direction(self) -> np.ndarray:
        """Unit vectors along the stored axes x, y, z as columns (3, 3), RAS."""
        return self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing)) / 1000

    def difference(self, other: "Grid") -> str:
        """In what two grids differ; empty if each voxel has the same place in both.

        Grids agree if their sizes are equal, their spacings agree to `MAX_SPACING_ERROR` and no
        corner lies further than `GRID_TOLERANCE_MM` from its counterpart.
        """
        if self.shape != other.shape:
            return f"size {_times(self.shape)} against {_times(other.shape)}"
        shifts = np.linalg.norm((self.affine - other.affine)[:3] @ _corners(self.shape), axis=0)
        spacings = np.array([self.spacing, other.spacing])
        same_spacing = (np.ptp(spacings, axis=0) <= MAX_SPACING_ERROR * spacings.min(axis=0)).all()
        if same_spacing and shifts.max() <= GRID_TOLERANCE_MM:
            return ""
        found = []
        if not same_spacing:
            found.append(f"spacing {_times(self.spacing)} against {_times(other.spacing)} mm")
        if self.orientation != other.orientation:
            found.append(f"direction {self.orientation} against {other.orientation}")
        elif np.abs(self.direction - other.direction).max() > MAX_SHEAR:
            cosines = np.sum(self.direction * other.direction, axis=0)
            angle = np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
            found.append(f"direction turned by {angle:.3g} degrees")
        if shifts[0] > GRID_TOLERANCE_MM:
            found.append(f"origin {_point(self.origin)} against {_point(other.origin)} mm (RAS)")
        return ", ".join(found) or f"corners up to {shifts.max():.3g} mm apart"


def _corners(shape: Sequence[int]) -> np.ndarray:
    """Indices (x, y, z, 1) of the eight corner voxels as columns, the first voxel first."""
    x, y, z = ((0, size - 1) for size in shape[::-1])
    return np.array([(i, j, k, 1) for i in x for j in y for k in z]).T


def _times(values: Sequence[float]) -> str:
    """(z, y, x) values as people write them: x first."""
    return " x ".join(f"{value:.6g}" for value in values[::-1])


def _point(point: np.ndarray) -> str:
    return "({})".format(", ".join(f"{value:.2f}" for value in point))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes
    ----------
    array : (z, y, x)
        In stored order: int16 or float32 HU, or uint8 labels; may be read-only.
    grid : Grid
    header : Nifti1Header
        What the writer takes the geometry from, unchanged.
    """

    array: np.ndarray
    grid: Grid
    header: Nifti1Header


def new_volume(
    array: np.ndarray, spacing: Sequence[float], affine: np.ndarray | None = None
) -> Volume:
    """A volume that comes from no file.

    Parameters
    ----------
    array : (z, y, x)
    spacing : (z, y, x)
        mm.
    affine : (4, 4)
        From a voxel's index (x, y, z) to RAS mm; by default axes along R, A, S and origin 0.

    Raises
    ------
    VolumeError
        If such a geometry would be refused in a file: sheared, singular, another spacing.
    """
    if affine is None:
        affine = np.diag([*spacing[::-1], 1.0])
    header = Nifti1Header()
    header.set_data_shape(array.shape[::-1])
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header["pixdim"][1:4] = spacing[::-1]
    grid = _grid(header)
    header.set_qform(affine, code=1)
    header["pixdim"][1:4] = spacing[::-1]  # set_qform has written its own
    return Volume(array, grid, header)


def to_canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A view of a stored (z, y, x) array with its axes permuted and flipped to RAS."""
    return orientations.apply_orientation(array.T, grid.axes).T


def from_canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
    """The inverse of `to_canonical`: a view in the order in which `grid` stores its voxels."""
    back = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), grid.axes)
    return orientations.apply_orientation(array.T, back).T


def canonical_shape(grid: Grid) -> tuple[int, int, int]:
    """(z, y, x) size of the array that `to_canonical` gives."""
    return _in_canonical_order(grid.shape, grid)


def canonical_spacing(grid: Grid) -> tuple[float, float, float]:
    """(z, y, x) spacing in mm of the array that `to_canonical` gives."""
    return _in_canonical_order(grid.spacing, grid)


def _in_canonical_order(values: tuple, grid: Grid) -> tuple:
    along = dict(zip(grid.axes[:, 0], values[::-1], strict=True))
    return along[2], along[1], along[0]


def voxel_hash(volume: Volume) -> str:
    """blake2b (16 bytes, hex) of the voxels in RAS order, their shape and type.

    A volume stored in another orientation or number format has the same hash; spacing and place
    do not count.
    """
    array = volume.array
    if array.dtype.kind == "f":
        array = _as_image(array, None)
    canonical = to_canonical(array, volume.grid)
    digest = blake2b(str((canonical.shape, array.dtype.str)).encode(), digest_size=16)
    for start in range(0, len(canonical), 32):  # blocks, so that a flipped volume is not copied
        digest.update(np.ascontiguousarray(canonical[start : start + 32]))
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Reading


def read_image(path: str | Path) -> Volume:
    """Read a CT: int16 HU if all values are whole and fit, else float32.

    Raises
    ------
    VolumeError
        If the file cannot be read, is damaged, has no usable geometry, or holds NaN, infinity or
        numbers that no CT can hold.
    """
    raw, scaling, grid, header = _read(path)
    return Volume(_as_image(raw, scaling), grid, header)


def read_label(path: str | Path) -> Volume:
    """Read a label map: uint8.

    Raises
    ------
    VolumeError
        As `read_image`, or if a value is no whole number from 0 to 255.
    """
    raw, scaling, grid, header = _read(path)
    return Volume(_as_label(raw, scaling), grid, header)


def read_frame(path: str | Path) -> Volume:
    """Read where a volume's voxels lie, from its header alone: nothing behind it is checked.

    Returns
    -------
    Volume
        Something to write labels like; its array is zero everywhere and takes no memory.
    """
    start = _file_bytes(path, 65536)
    if start.startswith(GZIP_MAGIC):
        try:
            start = isal_zlib.decompressobj(wbits=31).decompress(start, HEADER_BYTES)
        except IsalError:
            raise VolumeError("its gzip data are damaged", COPY_AGAIN) from None
    header = _header(start)
    grid = _grid(header)
    return Volume(np.broadcast_to(np.uint8(0), grid.shape), grid, header)


def geometry_hash(volume: Volume) -> str:
    """blake2b (10 bytes, hex) of a header's geometry fields, which the writer copies."""
    fields = [[field, volume.header[field].tolist()] for field in GEOMETRY_FIELDS]
    return blake2b(repr(fields).encode(), digest_size=10).hexdigest()


def mend_image(path: str | Path) -> tuple[Volume, float]:
    """Read a CT as `read_image`, but with a header that is mended where it can be.

    Axes that are not perpendicular become the nearest ones that are (the orthogonal factor of the
    polar decomposition) with the spacing of pixdim, and the volume's centre stays where it is. An
    orientation matrix that places no voxel (zero, singular, NaN) gives way to a valid qform. Of a
    sform and a qform that disagree the sform is kept, and the qform counts as a shift. Of headers
    in which nothing says which of two meanings is right, none is mended.

    Returns
    -------
    volume
        Its header is one that every reader takes in the same way.
    shift_mm
        How far the corner voxel moved that moved most; 0 for a sound header, and for a matrix that
        placed nothing.

    Raises
    ------
    VolumeError
        As `read_image`, if the header cannot be mended or something else is wrong.
    """
    return _mend(path, _as_image)


def mend_label(path: str | Path) -> tuple[Volume, float]:
    """Read a label map as `read_label`, but with a mended header: see `mend_image`."""
    return _mend(path, _as_label)


def _mend(
    path: str | Path, convert: Callable[[np.ndarray, "Scaling"], np.ndarray]
) -> tuple[Volume, float]:
    data = _content(path)
    header, shift = _mended(_header(bytes(data[:HEADER_BYTES])))
    grid = _grid(header)
    return Volume(convert(_numbers(data, header, grid), _scaling(header)), grid, header), shift


def _mended(header: Nifti1Header) -> tuple[Nifti1Header, float]:
    """A header with a geometry that `_grid` takes, and the largest shift of a corner in mm."""
    try:
        _grid(header)
    except VolumeError as error:
        refusal = error
    else:
        return header, 0.0
    mended = header.copy()
    if header["sform_code"] > 0 and not _places_voxels(header.get_sform()):
        mended["sform_code"] = 0
        try:
            _grid(mended)
        except VolumeError:
            raise refusal from None
        affine = _affine(mended)
        code, shift = int(header["qform_code"]), 0.0
    elif header["sform_code"] > 0 and isinstance(refusal, Sheared):
        before = header.get_sform()
        spacing = header["pixdim"][1:4].astype(np.float64)
        left, _, right = np.linalg.svd(before[:3, :3] / spacing)
        affine = before.copy()
        affine[:3, :3] = left @ right * spacing
        size = header["dim"][1:4].astype(np.float64)
        centre = (size - 1) / 2
        affine[:3, 3] += (before - affine)[:3, :3] @ centre
        # Opposite corners move alike, and the shift is linear between corners.
        corners = centre[:, None] * np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1]])
        shift = float(np.linalg.norm((before - affine)[:3, :3] @ corners, axis=0).max())
        shift *= _mm_per_unit(header)
        code = int(header["sform_code"])
        if header["qform_code"] > 0:
            shift = max(shift, float(_apart(header, affine).max()))
    elif isinstance(refusal, TwoPlaces):
        affine = header.get_sform()
        code, shift = int(header["sform_code"]), float(_apart(header, affine).max())
    else:
        raise refusal
    pixdim = mended["pixdim"][1:4].copy()
    mended.set_qform(affine, code=1)
    mended.set_sform(affine, code=1)
    mended["qform_code"] = mended["sform_code"] = code
    mended["pixdim"][1:4] = pixdim  # set_qform has written its own
    return mended, shift


def _places_voxels(affine: np.ndarray) -> bool:
    """Whether an affine gives every voxel a place of its own."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(lengths).all() or lengths.min() == 0:
        return False
    return abs(np.linalg.det(affine[:3, :3] / lengths)) >= SINGULAR


Scaling = tuple[float, float] | None
"""Slope and intercept, or None if numbers are meant as they are stored."""


def _read(path: str | Path) -> tuple[np.ndarray, Scaling, Grid, Nifti1Header]:
    """Stored numbers (z, y, x), how to scale them, and the geometry."""
    data = _content(path)
    header = _header(bytes(data[:HEADER_BYTES]))
    grid = _grid(header)
    return _numbers(data, header, grid), _scaling(header), grid, header


def _content(path: str | Path) -> bytes | memoryview:
    """A file's content, decompressed."""
    data = _file_bytes(path)
    return _unzip(data) if data.startswith(GZIP_MAGIC) else data


def _file_bytes(path: str | Path, most: int = -1) -> bytes:
    """A file's content, or its first bytes; refused if its name says another format."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            kind = "a folder" if os.path.isdir(path) else "no regular file"
            raise VolumeError(f"is {kind}", "name a .nii or .nii.gz file")
        with open(path, "rb") as file:
            data = file.read(most)
    except FileNotFoundError:
        raise VolumeError("does not exist", "check the path") from None
    except PermissionError:
        raise VolumeError("may not be read", "ask for permission to read it") from None
    except (OSError, ValueError) as error:
        cause = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise VolumeError(cause, "check the path and the disk") from None
    if not data:
        raise VolumeError("is empty", COPY_AGAIN)
    named_gz, is_gz = str(path).endswith(".gz"), data.startswith(GZIP_MAGIC)
    if is_gz and not named_gz:
        raise VolumeError("is compressed, its name does not say so", "rename it to .nii.gz")
    if named_gz and not is_gz:
        raise VolumeError("is named .gz, but is no gzip file", "compress it or copy it again")
    return data


def _unzip(data: bytes) -> bytes | memoryview:
    """All that a gzip file holds.

    Its last four bytes say how long that is, so one array can take it: numpy asks the system for
    large pages, a growing buffer gets small ones, which cost as much time as the decompression.
    They are no promise: of several members they count the last one only.
    """
    size = min(int.from_bytes(data[-4:], "little"), GZIP_MOST * len(data))
    try:
        content = memoryview(np.empty(size, np.uint8))
        filled = 0
        with igzip.open(io.BytesIO(data)) as file:
            while step := file.readinto(content[filled : filled + BLOCK]):
                filled += step
            if filled == size and not file.read(1):
                return content.toreadonly()
        return igzip.decompress(data)
    except (EOFError, BadGzipFile, IsalError) as error:
        raise VolumeError(_gzip_fault(data, error), COPY_AGAIN) from None
    except MemoryError:
        raise VolumeError("does not fit into memory", "use a machine with more of it") from None


def _gzip_fault(data: bytes, error: Exception) -> str:
    """What is wrong with gzip data at which the reader stopped."""
    # Texts of the two checks that end a gzip stream: of the content and of its length.
    if isinstance(error, BadGzipFile) and ("CRC" in str(error) or "length" in str(error)):
        return "has a wrong gzip checksum"
    rest = data
    try:
        while rest.startswith(GZIP_MAGIC):
            member = isal_zlib.decompressobj(wbits=31)
            part = rest
            while part and not member.eof:
                member.decompress(part, BLOCK)
                part = member.unconsumed_tail
            if not member.eof:
                return "is truncated: its gzip data have no end"
            rest = member.unused_data
    except IsalError:
        return "its gzip data are damaged"
    return f"has {len(rest):,} bytes after the end of its gzip data"


def _header(data: bytes) -> Nifti1Header:
    sizes = {
        order: int.from_bytes(data[:4], name) for order, name in (("<", "little"), (">", "big"))
    }
    order = next((order for order, size in sizes.items() if size == HEADER_BYTES), None)
    if 540 in sizes.values():
        raise VolumeError("is a NIfTI-2 file", "save it as NIfTI-1")
    if order is None:
        raise VolumeError("is no NIfTI file", "convert it to NIfTI-1 (.nii.gz)")
    if len(data) < HEADER_BYTES:
        raise VolumeError("is truncated within its header", COPY_AGAIN)
    magic = data[HEADER_BYTES - 4 : HEADER_BYTES]
    if magic == b"ni1\0":
        raise VolumeError("is one half of an .hdr/.img pair", "save it as one .nii.gz file")
    if magic != b"n+1\0":
        cause = f"is no NIfTI file (wrong magic: {magic!r})"
        raise VolumeError(cause, "convert it to NIfTI-1 (.nii.gz)")
    header = Nifti1Header(data[:HEADER_BYTES], endianness=order, check=False)
    axes = int(header["dim"][0])
    if 3 < axes <= 7 and (header["dim"][4 : axes + 1] == 1).all():
        header["dim"][0] = 3  # a series of one volume, as some programs write it
    return header


@np.errstate(over="ignore", invalid="ignore")
def _grid(header: Nifti1Header) -> Grid:
    axes, *size = (int(value) for value in header["dim"][:4])
    if axes != 3:
        raise VolumeError(f"is not 3D, but {axes}D", "save one volume (x, y, z) a file")
    if min(size) < 1:
        cause = f"has a dimension of zero or less: {_times(size[::-1])}"
        raise VolumeError(cause, MEND_HEADER)
    spacing = header["pixdim"][1:4].astype(np.float64)
    if not (np.isfinite(spacing) & (spacing > 0)).all():
        raise VolumeError(f"has the spacing {_times(spacing[::-1])}", MEND_HEADER)
    for kind in ("sform", "qform"):
        if (code := int(header[f"{kind}_code"])) > LAST_CODE:
            raise VolumeError(f"has the unknown {kind}_code {code}", MEND_HEADER)
    mm_per_unit = _mm_per_unit(header)
    _check_size(np.array(size), spacing, mm_per_unit)
    affine = _affine(header)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise VolumeError("its orientation matrix holds NaN or infinity", MEND_HEADER)
    if not _places_voxels(affine):
        raise VolumeError("its orientation matrix is singular", MEND_HEADER)
    x, y, z = (affine[:3, :3] / lengths).T
    shear = max(abs(x @ y), abs(x @ z), abs(y @ z))
    if shear > MAX_SHEAR:
        cause = f"its axes are sheared by {shear:.2g}, more than {MAX_SHEAR:g}"
        raise Sheared(cause, "resample it to perpendicular axes")
    if (np.abs(lengths / spacing - 1) > MAX_SPACING_ERROR).any():
        cause = f"its spacing is {_times(spacing[::-1])} in pixdim, {_times(lengths[::-1])} in"
        raise VolumeError(f"{cause} its orientation matrix", MEND_HEADER)
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        _check_qform(header, affine, shear)
    affine[:3] *= mm_per_unit
    affine.flags.writeable = False
    return Grid(tuple(size[::-1]), tuple((spacing * mm_per_unit).tolist()[::-1]), affine)


def _mm_per_unit(header: Nifti1Header) -> float:
    return MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)


def _check_size(size: np.ndarray, spacing: np.ndarray, mm_per_unit: float) -> None:
    """VolumeError if no CT of a body, nor a label map of one, has such a size and spacing."""
    spacing = spacing * mm_per_unit
    lengths = size * spacing
    order = np.argsort(spacing)
    lowest, pixel, highest = spacing[order]
    shorter, longest = np.sort(lengths)[1:]
    if (
        SPACING_MM[0] <= lowest
        and highest <= SPACING_MM[1]
        and pixel <= MAX_PIXEL_MM
        and longest <= MAX_LENGTH_MM
        and shorter <= MAX_WIDTH_MM
        and (pixel >= FINE_MM or lengths[order[:2]].max() >= MIN_FINE_WIDTH_MM)
    ):
        return
    cause = (
        f"has voxels of {_times(spacing[::-1])} mm and a field of view of "
        f"{_times(lengths[::-1])} mm, which no CT of a body has"
    )
    cure = "mend pixdim and the orientation matrix (10, 100 or 1000 times too large or small?)"
    if mm_per_unit != 1:
        unit = "metres" if mm_per_unit > 1 else "micrometres"
        cure = f"its unit is {unit}: set it to mm (xyzt_units 2) if the numbers are mm"
    raise VolumeError(cause, f"{cure}, or convert the volume again from its source")


def _affine(header: Nifti1Header) -> np.ndarray:
    """The sform if it has a code, else the qform; (4, 4) float64 in the header's unit."""
    if header["sform_code"] > 0:
        return header.get_sform()
    if header["qform_code"] <= 0:
        raise VolumeError("has no orientation (qform and sform code are 0)", MEND_HEADER)
    return _qform(header)


def _qform(header: Nifti1Header) -> np.ndarray:
    """The qform (4, 4) float64 in the header's unit, whatever its code."""
    header = header.copy()
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the format says
    parts = [f"quatern_{axis}" for axis in "bcd"]
    length = np.linalg.norm([float(header[part]) for part in parts])
    if 1 < length <= MAX_QUATERNION:
        for part in parts:
            header[part] /= length
    try:
        affine = header.get_qform()
    except (HeaderDataError, ValueError):
        raise VolumeError("its orientation (qform) is no rotation", MEND_HEADER) from None
    if not np.isfinite(affine).all():
        raise VolumeError("its orientation (qform) holds NaN or infinity", MEND_HEADER)
    return affine


def _check_qform(header: Nifti1Header, affine: np.ndarray, shear: float) -> None:
    """TwoPlaces if the qform places voxels otherwise than the sform, by more than it loses."""
    cure = (
        "programs follow one or the other: set the code of the wrong one to 0, or convert the "
        "volume again from its source"
    )
    try:
        apart = _apart(header, affine)
    except VolumeError as error:
        raise TwoPlaces(f"{error.cause}, beside a sound sform", cure) from None
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    directions[:, 2] *= np.linalg.det(directions)  # the handedness stands in pixdim[0]
    real = np.sqrt(max(0.0, 1 + np.trace(directions))) / 2
    turn = 2 * QUATERNION_ERROR / max(real, QUATERNION_ERROR**0.5)
    diagonal = np.linalg.norm(header["dim"][1:4] * header["pixdim"][1:4]) * _mm_per_unit(header)
    lost = (turn + shear) * diagonal
    if apart[0] <= GRID_TOLERANCE_MM and apart.max() <= GRID_TOLERANCE_MM + lost:
        return
    cause = f"its sform and its qform disagree: voxels up to {apart.max():.3g} mm apart"
    axes = ["".join(orientations.aff2axcodes(found)) for found in (affine, _qform(header))]
    if axes[0] != axes[1]:
        cause = f"{cause}, axes {axes[0]} against {axes[1]}"
    raise TwoPlaces(cause, cure)


def _apart(header: Nifti1Header, affine: np.ndarray) -> np.ndarray:
    """mm from each corner where an affine places it to where the qform does (8,), the first voxel
    first; the affine's spacing is taken for both."""
    qform = _qform(header)
    lengths = [np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (affine, qform)]
    qform[:3, :3] *= lengths[0] / lengths[1]
    shape = tuple(int(size) for size in header["dim"][3:0:-1])
    return _mm_per_unit(header) * np.linalg.norm((affine - qform)[:3] @ _corners(shape), axis=0)


def _numbers(data: bytes | memoryview, header: Nifti1Header, grid: Grid) -> np.ndarray:
    """The stored numbers (z, y, x) in this machine's byte order; read-only where not converted."""
    code = int(header["datatype"])
    if code in COLOUR | COMPLEX:
        kind = "colour" if code in COLOUR else "complex numbers"
        raise VolumeError(f"holds {kind}", "save one plain number a voxel")
    if code not in DTYPES:
        cause = f"has the unknown number format {code}"
        raise VolumeError(cause, "save it as int16 (images) or uint8 (labels)")
    dtype = np.dtype(DTYPES[code]).newbyteorder(header.endianness)
    offset = float(header["vox_offset"])
    if not (offset >= DATA_OFFSET and offset.is_integer()):
        raise VolumeError(f"its voxels start at byte {offset:g}, in the header", MEND_HEADER)
    z, y, x = grid.shape
    declared = z * y * x * dtype.itemsize
    held = max(len(data) - int(offset), 0)
    if held != declared:
        cause = f"holds {held:,} bytes of voxels, its header declares {declared:,}"
        raise VolumeError(cause, COPY_AGAIN if held < declared else MEND_HEADER)
    numbers = np.frombuffer(data, dtype, z * y * x, int(offset)).reshape(grid.shape)
    if not numbers.flags.aligned:
        numbers = numbers.copy()
    return numbers.astype(dtype.newbyteorder("="), copy=False)


def _scaling(header: Nifti1Header) -> Scaling:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope) or (slope, intercept) == (1, 0):
        return None
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        cause = f"is scaled by scl_slope {slope:g} and scl_inter {intercept:g}"
        raise VolumeError(cause, MEND_HEADER)
    return slope, intercept


def _scaled(numbers: np.ndarray, scaling: Scaling) -> np.ndarray:
    if scaling is None:
        return numbers
    slope, intercept = scaling
    return (numbers.astype(np.float64) * slope + intercept).astype(np.float32)


def _fit(values: np.ndarray, dtype: type) -> bool:
    """Whether an integer type holds all of some numbers exactly; never with NaN."""
    if np.can_cast(values.dtype, dtype):
        return True
    limits = np.iinfo(dtype)
    if not (values.min() >= limits.min and values.max() <= limits.max):
        return False
    return values.dtype.kind != "f" or bool((values == np.rint(values)).all())


@np.errstate(over="ignore", invalid="ignore")
def _as_image(raw: np.ndarray, scaling: Scaling) -> np.ndarray:
    """HU from stored numbers, slice by slice: no second full-size array of wide numbers."""
    if raw.dtype == np.int16 and scaling is None:
        return raw
    image = np.empty(raw.shape, np.int16)
    for numbers, target in zip(raw, image, strict=True):
        values = _scaled(numbers, scaling)
        if not _fit(values, np.int16):
            break
        target[...] = values
    else:
        return image
    image = np.empty(raw.shape, np.float32)
    bad = 0
    for numbers, target in zip(raw, image, strict=True):
        target[...] = _scaled(numbers, scaling)
        bad += target.size - np.count_nonzero(np.abs(target) <= MAX_HU)  # false for NaN
    if bad:
        raise VolumeError(_beyond_hu(image), "replace them by HU, or leave the case out")
    return image


def _beyond_hu(image: np.ndarray) -> str:
    """Which voxels of a float32 image can be no HU."""
    if bad := image.size - np.count_nonzero(np.isfinite(image)):
        return f"holds NaN or infinity in {_voxels(bad)}"
    beyond = image[np.abs(image) > MAX_HU]
    return f"holds {beyond[0]:.6g} in {_voxels(beyond.size)}, and no CT goes beyond {MAX_HU:,} HU"


def _voxels(count: int) -> str:
    return f"{count:,} voxels" if count > 1 else "1 voxel"


@np.errstate(over="ignore", invalid="ignore")
def _as_label(raw: np.ndarray, scaling: Scaling) -> np.ndarray:
    if raw.dtype == np.uint8 and scaling is None:
        return raw
    label = np.empty(raw.shape, np.uint8)
    for numbers, target in zip(raw, label, strict=True):
        values = _scaled(numbers, scaling)
        if not _fit(values, np.uint8):
            raise _no_label(raw, scaling)
        target[...] = values
    return label


def _no_label(raw: np.ndarray, scaling: Scaling) -> VolumeError:
    """Which of the stored numbers are no labels, and what they may be."""
    planes = (_scaled(numbers, scaling) for numbers in raw)
    found = np.concatenate(
        [
            values[~((values >= 0) & (values <= 255) & (values == np.rint(values)))]
            for values in planes
        ]
    )
    if bad := found.size - np.count_nonzero(np.isfinite(found)):
        return VolumeError(
            f"holds NaN or infinity in {_voxels(bad)}", "write a class or 0 in every voxel"
        )
    cause = f"holds the value {found[0]:g}: labels are whole numbers from 0 to 255"
    whole = np.rint(found)
    if whole.min() >= 0 and whole.max() <= 255 and np.abs(found - whole).max() <= NEARLY_WHOLE:
        cause = f"{cause}, and a program has scaled {_voxels(found.size)} of these"
        return VolumeError(cause, "round them and save them as uint8, without a slope")
    return VolumeError(cause, "give a label map; a CT is named CASE_0000.nii.gz")


# ---------------------------------------------------------------------------------------------
# Writing


def write_label(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write a label map as uint8 with exactly another volume's geometry.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` or ``.nii``; written whole or not at all. Equal content gives equal
        bytes.
    array : (z, y, x) integers or bool
    like
        Its header's geometry is copied field by field.

    Raises
    ------
    ValueError
        If uint8 cannot hold the array, or it is not of the size of `like`'s grid.
    """
    if array.dtype.kind not in "biu" or not _fit(array, np.uint8):
        raise ValueError(f"{path}: labels must be whole numbers from 0 to 255")
    _write(path, array.astype(np.uint8, copy=False), like)


def write_image(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write a CT, int16 or float32, with exactly another volume's geometry; see `write_label`."""
    if array.dtype not in (np.int16, np.float32):
        raise ValueError(f"{path}: an image is int16 or float32, not {array.dtype}")
    _write(path, array, like)


def _write(path: str | Path, array: np.ndarray, like: Volume) -> None:
    path = Path(path)
    if array.shape != like.grid.shape:
        raise ValueError(f"{path}: shape {array.shape} on a grid of {like.grid.shape}")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the name must end in .nii.gz or .nii")
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    header = Nifti1Header(endianness="<")
    for field in GEOMETRY_FIELDS:
        header[field] = like.header[field]
    header.set_data_dtype(array.dtype)
    header["vox_offset"] = DATA_OFFSET
    header["scl_slope"], header["scl_inter"] = 1, 0
    no_extension = bytes(DATA_OFFSET - HEADER_BYTES)
    parts = [header.binaryblock + no_extension, array]
    if path.suffix == ".gz":
        # Not by isal, which takes 0.2 s less for a large label map: of equal ones it has once made
        # other bytes. Level 4 makes smaller ones than it. The header has no name and no time.
        gzip = zlib.compressobj(4, wbits=31)
        parts = [*map(gzip.compress, parts), gzip.flush()]
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(parts))
