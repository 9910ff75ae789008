"""The reader refuses what is broken, the writer keeps geometry bit by bit."""

import gzip
import os
import shutil
import stat
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ORIENTATIONS, affine_of, affines, rotation, volumes

from panorgan.io.volumes import (
    GRID_TOLERANCE_MM,
    Volume,
    VolumeError,
    canonical_shape,
    canonical_spacing,
    from_canonical,
    geometry_hash,
    mend_image,
    mend_label,
    new_volume,
    read_frame,
    read_image,
    read_label,
    to_canonical,
    voxel_hash,
    write_image,
    write_label,
)
from panorgan.problems import Problems

SHAPE = (3, 4, 5)
GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
READABLE = (
    *("images/TSexample_0000", "images/LIDC0314_chest_upperabd_z275_0000", "labels/TSexample"),
    *("geometry/crop_RAS", "geometry/crop_LPS", "geometry/crop_IPL", "geometry/crop_thick6mm"),
    *("geometry/crop_oblique12x7z", "geometry/scl_inter_uint16", "geometry/crop_RAS_0000"),
    *("geometry/crop_LPS_0000", "geometry/crop_IPL_0000", "geometry/crop_thick6mm_0000"),
    *("geometry/crop_oblique12x7z_0000", "geometry/scl_inter_uint16_0000"),
    "labels_only/kits19_case_00061_flare",
)


def ct(shape=SHAPE, axes="LPS", spacing=(5.0, 0.8, 0.9), **place) -> Volume:
    """A CT of which every voxel has another HU."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 1024
    return new_volume(array, spacing, affine_of(axes, spacing, **place))


def nifti(array, order="<", fields=None, tail=b"", affine=None):
    """Bytes of an uncompressed NIfTI-1 file of a (z, y, x) array, with any fields overwritten.

    Written field by field, not with the module that is tested.
    """
    array = np.asarray(array)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = 1, 0
    for name, value in (fields or {}).items():
        header[name] = value
    return (
        header.binaryblock
        + bytes(4)
        + array.astype(array.dtype.newbyteorder(order)).tobytes()
        + tail
    )


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def refusal(read, path) -> VolumeError:
    with pytest.raises(VolumeError) as error:
        read(path)
    assert error.value.cause
    assert error.value.cure
    assert "\n" not in str(error.value)
    return error.value


# ---------------------------------------------------------------------------------------------
# Reading what is sound


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_whole_numbers_become_int16_and_uint8(tmp_path, name, order, dtype):
    array = np.arange(60).reshape(SHAPE).astype(dtype)
    path = saved(tmp_path / name, nifti(array, order))
    for read, kept in ((read_image, np.int16), (read_label, np.uint8)):
        volume = read(path)
        assert volume.array.dtype == kept
        np.testing.assert_array_equal(volume.array, array)
        assert volume.grid.spacing == (4.0, 3.0, 2.0)
        np.testing.assert_array_equal(volume.grid.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
        assert volume.grid.orientation == "RAS"
        assert volume.grid.voxel_ml == pytest.approx(0.024)


@pytest.mark.parametrize(
    ("array", "slope", "intercept", "expected"),
    [
        ([0, 1024, 4095], 1, -1024, np.array([-1024, 0, 3071], np.int16)),
        ([0, 1024, 4095], 2, -2048, np.array([-2048, 0, 6142], np.int16)),
        ([-1024, 3, 40], 0, 77, np.array([-1024, 3, 40], np.int16)),
        ([-1024, 3, 40], np.nan, np.nan, np.array([-1024, 3, 40], np.int16)),
        ([10, 20, -30], 0.1, 0, np.array([1, 2, -3], np.int16)),
        ([0, 1, 2], 0.5, 0, np.array([0, 0.5, 1], np.float32)),
        ([0, 1, 30000], 2, 0, np.array([0, 2, 60000], np.float32)),
    ],
)
def test_scaling(tmp_path, array, slope, intercept, expected):
    content = nifti(
        np.array([[array]], np.int16), fields={"scl_slope": slope, "scl_inter": intercept}
    )
    image = read_image(saved(tmp_path / "a.nii", content)).array
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image[0, 0], expected)


def test_labels_are_scaled_too(tmp_path):
    content = nifti(np.array([[[0, 10, 140]]], np.int16), fields={"scl_slope": 0.1})
    assert read_label(saved(tmp_path / "a.nii", content)).array.tolist() == [[[0, 1, 14]]]


@pytest.mark.parametrize("values", [[0.5, 1], [40000, 0], [-32769, 0]])
def test_what_int16_cannot_hold_stays_float(tmp_path, values):
    array = np.array([[[1.0, 2.0]], [values]])
    image = read_image(saved(tmp_path / "a.nii.gz", nifti(array))).array
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, array)


@pytest.mark.parametrize(("code", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (8, 1), (10, 1)])
def test_units_become_mm(tmp_path, code, mm):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = -7, 8, 9
    scaled = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ affine
    content = nifti(np.ones(SHAPE, np.int16), fields={"xyzt_units": code}, affine=scaled)
    grid = read_frame(saved(tmp_path / "a.nii", content)).grid
    assert grid.spacing == pytest.approx((4, 3, 2))
    np.testing.assert_allclose(grid.affine, affine, rtol=1e-6)


def test_sform_goes_before_qform(tmp_path):
    sform = affine_of("LPS", (4.0, 3.0, 2.0), origin=(1, 2, 3))
    fields = {"srow_x": sform[0], "srow_y": sform[1], "srow_z": sform[2]}
    array = np.ones(SHAPE, np.int16)
    path = saved(tmp_path / "a.nii", nifti(array, fields=fields | {"qform_code": 0}))
    assert read_frame(path).grid.orientation == "LPS"
    np.testing.assert_array_equal(read_frame(path).grid.origin, [1, 2, 3])
    saved(path, nifti(array, fields=fields | {"sform_code": 0}))
    assert read_frame(path).grid.orientation == "RAS"
    saved(path, nifti(array, fields=fields | {"sform_code": 0, "pixdim": [0, 2, 3, 4, 0, 0, 0, 0]}))
    assert read_frame(path).grid.orientation == "RAS"


@given(affines())
def test_a_qform_alone_places_voxels_like_the_sform(affine):
    volume = new_volume(np.zeros(SHAPE, np.int16), *affine)
    volume.header["sform_code"] = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii")
        write_image(path, volume.array, volume)
        assert volume.grid.difference(read_frame(path).grid) == ""


def test_gzip_of_several_members(tmp_path):
    content = nifti(np.arange(60, dtype=np.int16).reshape(SHAPE))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert read_image(path).array.ravel().tolist() == list(range(60))


def test_extensions_are_skipped(tmp_path):
    content = nifti(np.arange(60, dtype=np.int16).reshape(SHAPE), fields={"vox_offset": 368})
    content = content[:348] + b"\1\0\0\0" + struct.pack("<ii8s", 16, 6, b"comment") + content[352:]
    volume = read_image(saved(tmp_path / "a.nii.gz", content))
    assert volume.array.ravel().tolist() == list(range(60))
    write_image(tmp_path / "b.nii.gz", volume.array, volume)
    assert gzip.decompress((tmp_path / "b.nii.gz").read_bytes())[344:352] == b"n+1\0\0\0\0\0"


def test_a_series_of_one_volume_is_that_volume(tmp_path):
    dim = [5, *SHAPE[::-1], 1, 1, 1, 1]
    content = nifti(np.arange(60, dtype=np.int16).reshape(SHAPE), fields={"dim": dim})
    volume = read_image(saved(tmp_path / "a.nii.gz", content))
    assert volume.array.shape == volume.grid.shape == SHAPE
    assert volume.array.ravel().tolist() == list(range(60))
    write_label(tmp_path / "b.nii.gz", volume.array.astype(np.uint8), volume)
    assert nib.load(tmp_path / "b.nii.gz").shape == SHAPE[::-1]
    assert not read_label(tmp_path / "b.nii.gz").grid.difference(volume.grid)


def test_voxels_at_an_odd_byte(tmp_path):
    content = nifti(np.arange(60, dtype=np.int32).reshape(SHAPE), fields={"vox_offset": 353})
    image = read_image(saved(tmp_path / "a.nii", content[:352] + b"\0" + content[352:])).array
    assert image.ravel().tolist() == list(range(60))


# ---------------------------------------------------------------------------------------------
# Refusing what is not


WHOLE = np.arange(60, dtype=np.int16).reshape(SHAPE)
SHEARED = np.array([[2, 0.15, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]])
BAD_FIELDS = {
    "4D": ({"dim": [4, 5, 4, 3, 2, 1, 1, 1]}, "is not 3D, but 4D"),
    "9D": ({"dim": [9, 5, 4, 3, 1, 1, 1, 1]}, "is not 3D, but 9D"),
    "2D": ({"dim": [2, 5, 12, 1, 1, 1, 1, 1]}, "is not 3D, but 2D"),
    "zero dimension": ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, "dimension of zero or less: 5 x 0 x 3"),
    "negative dimension": (
        {"dim": [3, 5, -4, 3, 1, 1, 1, 1]},
        "dimension of zero or less: 5 x -4 x 3",
    ),
    "zero spacing": ({"pixdim": [1, 2, 3, 0, 0, 0, 0, 0]}, "spacing 2 x 3 x 0"),
    "negative spacing": ({"pixdim": [1, 2, -3, 4, 0, 0, 0, 0]}, "spacing 2 x -3 x 4"),
    "NaN spacing": ({"pixdim": [1, np.nan, 3, 4, 0, 0, 0, 0]}, "spacing nan x 3 x 4"),
    "infinite spacing": ({"pixdim": [1, 2, 3, np.inf, 0, 0, 0, 0]}, "spacing 2 x 3 x inf"),
    "other spacing": ({"pixdim": [1, 2, 3, 4.1, 0, 0, 0, 0]}, "2 x 3 x 4.1 in pixdim"),
    "no orientation": ({"qform_code": 0, "sform_code": 0}, "no orientation"),
    "NaN in sform": ({"srow_x": [2, 0, 0, np.nan]}, "NaN"),
    "singular": ({"srow_x": [0, 3, 0, 0]}, "singular"),
    "flat": ({"srow_z": [0, 0, 0, 0]}, "singular"),
    "sheared": ({"srow_x": SHEARED[0]}, "sheared by 0.05"),
    "no rotation": ({"sform_code": 0, "quatern_b": 2}, "no rotation"),
    "NaN quaternion": ({"sform_code": 0, "quatern_b": np.nan}, "orientation"),
    "unknown sform code": ({"sform_code": 9}, "has the unknown sform_code 9"),
    "unknown qform code": ({"qform_code": 300}, "has the unknown qform_code 300"),
    "no rotation beside a sform": ({"quatern_b": 2}, "no rotation, beside a sound sform"),
    "NaN beside a sform": ({"qoffset_x": np.nan}, "holds NaN or infinity, beside a sound sform"),
    "odd qfac": ({"sform_code": 0, "pixdim": [7, 2, 3, 4, 0, 0, 0, 0]}, "no rotation"),
    "colour": ({"datatype": 128}, "colour"),
    "colour, alpha": ({"datatype": 2304}, "colour"),
    "complex": ({"datatype": 32}, "complex"),
    "unknown type": ({"datatype": 77}, "number format 77"),
    "voxels in the header": ({"vox_offset": 0}, "byte 0"),
    "voxels nowhere": ({"vox_offset": np.inf}, "byte inf"),
    "voxels behind the end": ({"vox_offset": 1e9}, "holds 0 bytes"),
    "NaN intercept": ({"scl_slope": 2, "scl_inter": np.nan}, "scl_inter nan"),
    "infinite slope": ({"scl_slope": np.inf}, "scl_slope inf"),
    "pair": ({"magic": b"ni1"}, ".hdr/.img pair"),
    "other magic": ({"magic": b"abc"}, "wrong magic: b'abc"),
    "no magic": ({"magic": b""}, "is no NIfTI file"),
    "NIfTI-2": ({"sizeof_hdr": 540}, "NIfTI-2"),
    "other header": ({"sizeof_hdr": 349}, "is no NIfTI file"),
}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("fault", BAD_FIELDS)
def test_bad_headers(tmp_path, fault, name):
    fields, cause = BAD_FIELDS[fault]
    path = saved(tmp_path / name, nifti(WHOLE, fields=fields))
    for read in (read_image, read_label):
        assert cause in refusal(read, path).cause


def test_shear_and_spacing_within_the_bounds(tmp_path):
    fields = {"srow_x": [2, 3 * 2.9e-4, 0, 0], "pixdim": [1, 2.0019, 3, 4, 0, 0, 0, 0]}
    assert (
        read_frame(saved(tmp_path / "a.nii", nifti(WHOLE, fields=fields))).grid.spacing[2] > 2.001
    )
    fields = {"srow_x": [2, 3 * 3.1e-4, 0, 0]}
    assert (
        "sheared"
        in refusal(read_frame, saved(tmp_path / "a.nii", nifti(WHOLE, fields=fields))).cause
    )


def test_wrong_lengths(tmp_path):
    whole = nifti(WHOLE)
    path = saved(tmp_path / "a.nii.gz", whole[:-1])
    assert refusal(read_image, path).cause == "holds 119 bytes of voxels, its header declares 120"
    assert "holds 121 bytes" in refusal(read_image, saved(path, whole + b"\0")).cause
    assert "within its header" in refusal(read_image, saved(path, whole[:300])).cause
    assert "holds 0 bytes" in refusal(read_image, saved(path, whole[:348])).cause
    assert "is no NIfTI" in refusal(read_image, saved(tmp_path / "b.nii", b"hello")).cause


def test_damaged_gzip(tmp_path):
    path = saved(tmp_path / "a.nii.gz", nifti(WHOLE))
    whole = path.read_bytes()

    def cause(content):
        path.write_bytes(content)
        return refusal(read_image, path).cause

    assert cause(b"") == "is empty"
    for end in (2, 9, 15, 40, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        assert "is truncated" in cause(whole[:end])
    assert "wrong gzip checksum" in cause(whole[:-8] + b"abcd" + whole[-4:])
    assert "wrong gzip checksum" in cause(whole[:-4] + b"abcd")
    for more in (b"m", b"more" * 600, b"\x1f"):
        assert cause(whole + more) == f"has {len(more):,} bytes after the end of its gzip data"
    assert "is truncated" in cause(whole + whole[:20])
    path.write_bytes(whole + bytes(100))  # what fills a tape's block
    np.testing.assert_array_equal(read_image(path).array, WHOLE)
    assert "damaged" in cause(whole[:11] + b"\xff\xff" + whole[13:])
    assert "no gzip file" in cause(nifti(WHOLE))
    (tmp_path / "b.nii").write_bytes(whole)
    assert "is compressed" in refusal(read_image, tmp_path / "b.nii").cause


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    assert refusal(read_image, tmp_path / "a.nii.gz").cause == "does not exist"
    assert refusal(read_image, tmp_path / ("a" * 300)).cause.startswith("cannot be read: ")
    assert refusal(read_image, tmp_path / "a\0b").cause.startswith("cannot be read: ")
    assert refusal(read_label, tmp_path).cause == "is a folder"
    assert refusal(read_frame, tmp_path).cause == "is a folder"
    os.mkfifo(tmp_path / "pipe.nii")
    assert refusal(read_image, tmp_path / "pipe.nii").cause == "is no regular file"
    (tmp_path / "link.nii").symlink_to("nowhere.nii")
    assert refusal(read_image, tmp_path / "link.nii").cause == "does not exist"
    path = saved(tmp_path / "b.nii", nifti(WHOLE))

    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert refusal(read_image, path).cause == "may not be read"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_infinity(tmp_path, bad):
    array = np.ones(SHAPE)
    array[1, 2, 3:] = bad
    path = saved(tmp_path / "a.nii.gz", nifti(array))
    assert refusal(read_image, path).cause == "holds NaN or infinity in 2 voxels"
    error = refusal(read_label, path)
    if bad == 1e300:  # infinity among the float32 of an image
        assert error.cause.startswith("holds the value 1e+300")
    else:
        assert str(error) == "holds NaN or infinity in 2 voxels; write a class or 0 in every voxel"


@pytest.mark.parametrize("value", [-1, 256, 2.5, -0.5, 1e9])
def test_values_that_are_no_labels(tmp_path, value):
    array = np.ones(SHAPE, np.float32)
    array[2, 1, 1] = value
    error = refusal(read_label, saved(tmp_path / "a.nii.gz", nifti(array)))
    assert f"holds the value {value:g}" in error.cause
    assert "_0000" in error.cure
    if value == np.rint(value):
        refusal(read_label, saved(tmp_path / "a.nii.gz", nifti(array.astype(np.int32))))


def test_labels_that_a_program_has_scaled(tmp_path):
    array = np.array([[[0, 4.99992, 14, 4.99992]]], np.float32)
    error = refusal(read_label, saved(tmp_path / "a.nii.gz", nifti(array)))
    assert str(error) == (
        "holds the value 4.99992: labels are whole numbers from 0 to 255, and a program has scaled "
        "2 voxels of these; round them and save them as uint8, without a slope"
    )
    array[0, 0, 2] = 13.4
    assert "_0000" in refusal(read_label, saved(tmp_path / "a.nii.gz", nifti(array))).cure


@pytest.mark.parametrize("value", [65536, 4e9, -1e6, 3e38])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int16])
def test_numbers_that_no_ct_can_hold(tmp_path, value, dtype):
    array = WHOLE.astype(np.float64) - 1000
    array[1, 2, 3] = value
    slope = 1 if dtype != np.int16 else np.abs(array).max() / 32767
    fields = {"scl_slope": slope} if slope != 1 else {}
    with np.errstate(invalid="ignore"):
        stored = np.rint(array / slope).astype(dtype)
    cause = refusal(read_image, saved(tmp_path / "a.nii.gz", nifti(stored, fields=fields))).cause
    assert cause.startswith("holds ")
    assert cause.endswith("in 1 voxel, and no CT goes beyond 65,535 HU")
    if dtype == np.float32:
        assert cause.startswith(f"holds {value:g} in")


def test_metal_and_padding_are_read(tmp_path):
    for value in (65535, 30710, -32769, -65535):
        array = np.array([[[value, 40.0, -1000.0]]])
        assert read_image(saved(tmp_path / "a.nii", nifti(array))).array.min() == min(value, -1000)


# Unit, spacing (x, y, z) in it, size (x, y, z), how the refusal begins.
IMPOSSIBLE = {
    "metres": (
        1,
        (2, 2, 3),
        (32, 32, 16),
        "voxels of 2000 x 2000 x 3000 mm and a field of view of",
    ),
    "micrometres": (3, (2, 2, 3), (32, 32, 16), "voxels of 0.002 x 0.002 x 0.003 mm"),
    "centimetres": (2, (0.07, 0.07, 0.5), (512, 512, 90), "voxels of 0.07 x 0.07 x 0.5 mm"),
    "tenfold": (2, (7, 7, 10), (512, 512, 400), "voxels of 7 x 7 x 10 mm"),
    "tenfold crop": (2, (20, 20, 30), (32, 32, 16), "voxels of 20 x 20 x 30 mm"),
    "tenfold slices": (2, (0.8, 0.8, 50), (512, 512, 20), "voxels of 0.8 x 0.8 x 50 mm"),
    "a tenth": (2, (0.15, 0.15, 0.15), (300, 300, 300), "voxels of 0.15 x 0.15 x 0.15 mm"),
    "a tenth, coarse": (2, (0.4, 0.4, 0.6), (80, 56, 28), "voxels of 0.4 x 0.4 x 0.6 mm"),
    "a tenth, sideways": (2, (0.5, 0.08, 0.08), (60, 512, 512), "voxels of 0.5 x 0.08 x 0.08 mm"),
    "60 m": (2, (10, 10, 10), (512, 512, 6000), "voxels of 10 x 10 x 10 mm"),
}


def frame_of(path, unit, spacing, size):
    """A header alone."""
    content = nifti(np.zeros((1, 1, 1), np.int16), affine=np.diag([*spacing, 1.0]))
    header = nib.Nifti1Header(content[:348], check=False)
    header["dim"][1:4], header["xyzt_units"] = size, unit
    return saved(path, header.binaryblock + bytes(4))


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_spacings_that_cannot_be(tmp_path, case):
    unit, spacing, size, begin = IMPOSSIBLE[case]
    path = frame_of(tmp_path / "a.nii.gz", unit, spacing, size)
    for read in (read_frame, read_image, read_label, mend_image):  # before voxels are asked for
        error = refusal(read, path)
        assert error.cause.startswith(f"has {begin}")
        assert error.cause.endswith("mm, which no CT of a body has")
        names = {1: "its unit is metres", 3: "its unit is micrometres"}
        assert error.cure.startswith(
            names.get(unit, "mend pixdim and the orientation matrix (10, ")
        )


@pytest.mark.parametrize(
    ("spacing", "size"),
    [
        ((0.29, 0.29, 0.625), (512, 512, 300)),  # a spine
        ((0.2, 0.2, 0.25), (1024, 1024, 400)),
        ((0.98, 0.98, 0.5), (512, 512, 2200)),
        ((0.7, 0.7, 10), (512, 512, 30)),
        ((0.8, 0.8, 20), (512, 512, 1)),
        ((1.5, 1.5, 1.5), (500, 400, 1300)),  # from head to foot
        ((6, 6, 6), (80, 60, 90)),
        ((0.6, 0.6, 1), (24, 20, 8)),  # a small crop
        ((5, 0.7, 0.7), (40, 512, 512)),
    ],
)
def test_odd_but_right_spacings_are_read(tmp_path, spacing, size):
    frame = read_frame(frame_of(tmp_path / "a.nii.gz", 2, spacing, size))
    assert frame.grid.spacing == pytest.approx(spacing[::-1])


@pytest.mark.parametrize("excess", [1.0000005, 1.000001, 1.0005])
def test_a_quaternion_that_was_rounded_is_read_as_simpleitk_does(tmp_path, excess):
    volume = ct(axes="LPS", tilt=(0, 0, 25), origin=(10, 20, 30))
    volume.header["sform_code"] = 0
    for part in ("quatern_b", "quatern_c", "quatern_d"):
        volume.header[part] *= excess / np.cos(np.radians(12.5))  # the real part is 0 then
    write_image(tmp_path / "a.nii", volume.array, volume)
    grid, reference = read_image(tmp_path / "a.nii").grid, sitk.ReadImage(tmp_path / "a.nii")
    lps = np.diag([-1, -1, 1])
    direction = np.reshape(reference.GetDirection(), (3, 3))
    np.testing.assert_allclose(lps @ grid.direction, direction, atol=1e-6)
    np.testing.assert_allclose(lps @ grid.origin, reference.GetOrigin(), atol=1e-4)


CONTENT = nifti(WHOLE)


@given(st.binary(max_size=500) | st.integers(0, len(CONTENT)).map(lambda end: CONTENT[:end]))
def test_any_bytes_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        for name, stored in (("a.nii", content), ("a.nii.gz", content), ("b.nii.gz", None)):
            path = Path(folder, name)
            path.write_bytes(gzip.compress(content, 1) if stored is None else stored)
            for read in (read_image, read_label, read_frame):
                if content != CONTENT and read is not read_frame:
                    refusal(read, path)
                    continue
                with suppress(VolumeError):
                    read(path)


@settings(max_examples=200)
@given(st.integers(0, 351), st.integers(1, 255), st.integers(0, 351), st.integers(0, 255))
def test_changed_header_bytes_are_read_or_refused(place, change, place_2, change_2):
    content = bytearray(CONTENT)
    content[place] ^= change
    content[place_2] ^= change_2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii")
        path.write_bytes(content)
        for read in (read_image, read_label):
            try:
                volume = read(path)
            except VolumeError:
                continue
            assert volume.array.size == 60
            assert np.isfinite(volume.array).all()
            assert volume.grid.difference(volume.grid) == ""
            voxel_hash(volume)
            write_label(path.with_name("b.nii"), np.zeros(volume.grid.shape, np.uint8), volume)
            assert read_frame(path.with_name("b.nii")).grid.difference(volume.grid) == ""


@settings(max_examples=200)
@given(st.data())
def test_a_changed_byte_of_a_gzip_never_changes_voxels(data):
    stored = bytearray(gzip.compress(CONTENT, 1, mtime=0))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii.gz")
        path.write_bytes(stored)
        try:
            found = read_image(path).array
        except VolumeError:
            return
        np.testing.assert_array_equal(found, WHOLE)  # a byte without meaning, such as the time


# ---------------------------------------------------------------------------------------------
# Two positions in one header


def placed_twice(path, sform, codes=(1, 1), qform=None):
    """A volume of 64 x 64 x 20 voxels of 2 x 2 x 3 mm whose sform is another than its qform."""
    qform = np.diag([2.0, 2.0, 3.0, 1.0]) if qform is None else qform
    rows = {f"srow_{name}": sform[row] for row, name in enumerate("xyz")}
    rows |= {"sform_code": codes[0], "qform_code": codes[1]}
    return saved(path, nifti(np.zeros((20, 64, 64), np.int16), fields=rows, affine=qform))


def moved(x=0.0, degrees=0.0, mirrored=False):
    affine = affine_of("LAS" if mirrored else "RAS", (3.0, 2.0, 2.0), (x, 0, 0), (0, 0, degrees))
    return affine


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2), (4, 1)])
@pytest.mark.parametrize(
    ("sform", "how"),
    [
        (moved(mirrored=True), "252 mm apart, axes LAS against RAS"),
        (moved(x=25.0), "25 mm apart"),
        (moved(x=0.2), "0.2 mm apart"),
        (moved(degrees=1), "3.11 mm apart"),
        (moved(degrees=180), "356 mm apart, axes LPS against RAS"),
    ],
)
def test_two_positions_are_refused(tmp_path, codes, sform, how):
    error = refusal(read_image, placed_twice(tmp_path / "a.nii.gz", sform, codes))
    assert error.cause == f"its sform and its qform disagree: voxels up to {how}"
    assert error.cure.startswith("programs follow one or the other: set the code of the wrong one")
    for codes in ((1, 0), (0, 1)):
        read_image(placed_twice(tmp_path / "a.nii.gz", sform, codes))


def test_positions_that_agree_within_the_tolerance_are_read(tmp_path):
    read_image(placed_twice(tmp_path / "a.nii.gz", moved(x=0.9 * GRID_TOLERANCE_MM)))
    # Rounded spacings are within the bound for these.
    read_image(placed_twice(tmp_path / "a.nii.gz", np.diag([2.0009, 2.0009, 3.0, 1.0])))


@given(st.floats(-3, 0.5), st.sampled_from(["LPS", "RAS", "LAI", "RPI"]), st.data())
def test_what_a_quaternion_loses_is_no_disagreement(exponent, axes, data):
    """Headers as SimpleITK writes them: near 180 degrees a qform is up to 0.1 degrees off."""
    tilt = [10**exponent * data.draw(st.floats(-1, 1)) for _ in range(3)]
    affine = affine_of(axes, (1.0, 1.0, 1.0), tilt=tuple(tilt))
    image = sitk.Image([400, 400, 1], sitk.sitkInt16)
    image.SetSpacing([0.9, 0.9, 5.0])
    image.SetOrigin([data.draw(st.floats(-300, 300)) for _ in range(3)])
    image.SetDirection((np.diag([-1, -1, 1]) @ affine[:3, :3]).ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.nii")
        sitk.WriteImage(image, path)
        assert read_frame(path).grid.shape == (1, 400, 400)


# ---------------------------------------------------------------------------------------------
# Mending


def sheared_file(path, array, affine, shear, fields=None):
    """A volume whose third stored axis leans along the first by a share `shear`, sform only."""
    leaning = affine.copy()
    first, third = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (0, 2))
    leaning[:3, 2] = np.linalg.norm(affine[:3, 2]) * (third + shear * first)
    rows = {f"srow_{name}": leaning[row] for row, name in enumerate("xyz")}
    content = nifti(array, fields=rows | {"qform_code": 0} | (fields or {}), affine=affine)
    return saved(path, content), leaning


@pytest.mark.parametrize("axes", ["RAS", "LPS", "IPL", "AIR"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), (12, -5, 7)])
@pytest.mark.parametrize("shear", [4e-4, 0.02])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_sheared_axes_become_the_nearest_perpendicular_ones(tmp_path, axes, tilt, shear, dtype):
    array = np.random.default_rng(0).integers(0, 200, (7, 40, 60)).astype(dtype)
    if dtype == np.float32:
        array += np.float32(0.25)
    spacing = (5.0, 0.8, 0.9)
    affine = affine_of(axes, spacing, (-100, 50, 300), tilt)
    path, leaning = sheared_file(tmp_path / "a.nii.gz", array, affine, shear)
    before = path.read_bytes()
    read, mend, write = (
        (read_label, mend_label, write_label)
        if dtype == np.uint8
        else (read_image, mend_image, write_image)
    )
    assert "sheared" in refusal(read, path).cause
    if dtype == np.int16:
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(path)
    volume, shift = mend(path)
    assert (volume.array.dtype, volume.grid.spacing) == (dtype, pytest.approx(spacing))
    np.testing.assert_array_equal(volume.array, array)
    # The volume's centre stays, and no corner moves further than is said.
    grid = volume.grid.affine
    x, y, z = ((0, size - 1) for size in array.shape[::-1])
    corners = np.array([(i, j, k, 1) for i in x for j in y for k in z], float).T
    moved = np.linalg.norm((grid - leaning)[:3] @ corners, axis=0)
    assert shift == pytest.approx(moved.max(), abs=1e-4)
    np.testing.assert_allclose((grid @ corners).mean(1), (leaning @ corners).mean(1), atol=1e-4)
    unit = grid[:3, :3] / spacing[::-1]
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-6)
    # Nearest: the gain of a small turn either way about any axis is none.
    wanted = leaning[:3, :3] / spacing[::-1]
    for degrees in np.vstack([np.eye(3), -np.eye(3)]) * 0.01:
        turned = rotation(tuple(degrees)) @ unit
        assert np.linalg.norm(turned - wanted) >= np.linalg.norm(unit - wanted)
    # Everybody reads the copy in the same way; the file is what it was.
    copy = tmp_path / "copy.nii.gz"
    write(copy, volume.array, volume)
    ours, theirs = read(copy), sitk.ReadImage(copy)
    assert ours.array.dtype == dtype
    np.testing.assert_array_equal(ours.array, array)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), array)
    assert geometry_hash(ours) == geometry_hash(volume)
    lps = np.diag([-1, -1, 1])
    direction = np.reshape(theirs.GetDirection(), (3, 3))
    np.testing.assert_allclose(lps @ direction, ours.grid.direction, atol=1e-5)
    np.testing.assert_allclose(lps @ theirs.GetOrigin(), ours.grid.origin, atol=1e-3)
    np.testing.assert_allclose(nib.load(copy).affine, ours.grid.affine, atol=1e-4)
    assert mend(copy)[1] == 0
    assert path.read_bytes() == before


def test_shift_counts_in_mm(tmp_path):
    array = np.zeros((7, 40, 60), np.uint8)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    path, _ = sheared_file(tmp_path / "a.nii", array, affine, 0.001)
    mm = mend_label(path)[1]
    affine = np.diag([2000.0, 3000.0, 4000.0, 1.0])
    path, _ = sheared_file(tmp_path / "b.nii", array, affine, 0.001, {"xyzt_units": 3})
    assert mend_label(path)[1] == pytest.approx(mm)


@pytest.mark.parametrize("sform", [moved(x=0.2), moved(mirrored=True)])
def test_of_two_positions_the_sform_is_kept_and_the_other_is_the_shift(tmp_path, sform):
    path = placed_twice(tmp_path / "a.nii.gz", sform, codes=(2, 1))
    volume, shift = mend_image(path)
    assert shift == pytest.approx(0.2 if sform[0, 3] else 252)
    np.testing.assert_allclose(volume.grid.affine, sform, atol=1e-6)
    write_image(tmp_path / "copy.nii", volume.array, volume)
    assert read_frame(tmp_path / "copy.nii").grid.difference(volume.grid) == ""
    origin = sitk.ReadImage(tmp_path / "copy.nii").GetOrigin()
    np.testing.assert_allclose(origin, -sform[:3, 3], atol=1e-6)


def test_a_sheared_sform_beside_a_qform_elsewhere_moves_as_far_as_that(tmp_path):
    leaning = moved()
    leaning[0, 2] = 0.002 * 3
    assert mend_image(placed_twice(tmp_path / "a.nii", leaning))[1] < 0.15
    leaning[0, 3] = 25
    assert mend_image(placed_twice(tmp_path / "a.nii", leaning))[1] == pytest.approx(25, abs=0.1)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_matrix_that_places_nothing_gives_way_to_the_qform(tmp_path, bad):
    affine = affine_of("LIP", (2, 3, 4), (10, 20, 30), (3, 4, 5))
    rows = {f"srow_{name}": [bad] * 4 for name in "xyz"}
    path = saved(tmp_path / "a.nii", nifti(WHOLE, fields=rows, affine=affine))
    assert "orientation matrix" in refusal(read_image, path).cause
    volume, shift = mend_image(path)
    assert shift == 0
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
    write_image(tmp_path / "copy.nii", volume.array, volume)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "copy.nii")), volume.array
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0, "qform_code": 0},
        {"qform_code": 0, "srow_x": [0] * 4},
        {"quatern_b": 2, "srow_x": [0] * 4},
        {"quatern_b": 2},
        {"sform_code": 99},
        {"sform_code": 0, "quatern_b": 2},
        {"pixdim": [1, 2, 0, 4, 0, 0, 0, 0]},
        {"pixdim": [1, -2, 3, 4, 0, 0, 0, 0]},
        {"pixdim": [1, 2.1, 3, 4, 0, 0, 0, 0]},
        {"dim": [4, 5, 4, 3, 2, 1, 1, 1]},
        {"sform_code": 1, "srow_x": [0] * 4, "pixdim": [1, 2, 0, 4, 0, 0, 0, 0]},
    ],
)
def test_headers_of_unknown_meaning_are_not_mended(tmp_path, fields):
    path = saved(tmp_path / "a.nii", nifti(WHOLE, fields=fields))
    assert refusal(read_image, path).cause.startswith(refusal(mend_image, path).cause)


def test_damaged_files_are_not_mended(tmp_path):
    path, _ = sheared_file(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8), np.eye(4), 0.01)
    path.write_bytes(path.read_bytes()[:-1])
    assert "its header declares" in refusal(mend_label, path).cause


@pytest.mark.real_data
@pytest.mark.parametrize("ending", ["", "_0000"])
def test_real_shear_moves_too_far(real_data, ending):
    path = real_data / f"geometry/shear_sform{ending}.nii.gz"
    volume, shift = (mend_image if ending else mend_label)(path)
    assert shift == pytest.approx(3.92, abs=0.01)
    np.testing.assert_array_equal(volume.array.T, np.asarray(nib.load(path).dataobj))


# ---------------------------------------------------------------------------------------------
# Writing


@given(volumes(np.int16) | volumes(np.float32), st.sampled_from(["a.nii", "a.nii.gz"]))
def test_images_come_back_as_they_were(volume, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_image(path, volume.array, volume)
        found = read_image(path)
        assert found.array.dtype == volume.array.dtype
        np.testing.assert_array_equal(found.array, volume.array)
        assert found.grid.shape == volume.grid.shape
        assert found.grid.spacing == volume.grid.spacing
        np.testing.assert_array_equal(found.grid.affine, volume.grid.affine)
        assert read_frame(path).grid.difference(volume.grid) == ""
        assert os.listdir(folder) == [name]


@given(volumes(np.uint8))
def test_labels_have_exactly_the_geometry_of_their_image(label):
    image = Volume(label.array.astype(np.int16), label.grid, label.header)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{name}.nii.gz")) for name in ("image", "label")]
        write_image(paths[0], image.array, image)
        write_label(paths[1], label.array, read_image(paths[0]))
        np.testing.assert_array_equal(read_label(paths[1]).array, label.array)
        first, second = map(sitk.ReadImage, paths)
        for fact in GEOMETRY:
            assert getattr(first, fact)() == getattr(second, fact)()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(second), label.array)
        assert second.GetPixelID() == sitk.sitkUInt8
        lps = np.diag([-1, -1, 1])
        np.testing.assert_allclose(first.GetOrigin(), lps @ image.grid.origin, atol=1e-3)
        direction = np.reshape(first.GetDirection(), (3, 3))
        np.testing.assert_allclose(direction, lps @ image.grid.direction, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
def test_geometry_fields_are_copied_bit_by_bit(tmp_path, order):
    odd = {
        "srow_x": [-2, 1e-4, 0, 5],
        "pixdim": [-1, 2.0001, 3, 4, 0.25, 5, 6, 7],
        "dim": [3, 5, 4, 3, 0, 1, 0, 1],
        "xyzt_units": 10,
        "sform_code": 4,
        "qform_code": 2,
        "descrip": b"made elsewhere",
        "scl_slope": 2,
        "scl_inter": -7,
        "cal_max": 9,
    }
    odd |= {"srow_y": [0, -3, 0, 6], "srow_z": [0, 0, -4, 7]}
    content = nifti(WHOLE, order, odd, affine=affine_of("LPI", (4.0, 3.0, 2.0), origin=(5, 6, 7)))
    source = read_image(saved(tmp_path / "a.nii", content))
    write_label(tmp_path / "b.nii", np.ones(SHAPE, np.uint8), source)
    before = nib.Nifti1Header((tmp_path / "a.nii").read_bytes()[:348], order, check=False)
    after = nib.Nifti1Header((tmp_path / "b.nii").read_bytes()[:348], "<", check=False)
    geometry = (
        *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c"),
        *("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
    )
    for name in geometry:
        assert before[name].tobytes() == after[name].astype(before[name].dtype).tobytes(), name
    assert (after["scl_slope"], after["scl_inter"], after["vox_offset"]) == (1, 0, 352)
    assert (after["datatype"], after["bitpix"], after["cal_max"]) == (2, 8, 0)


def test_equal_content_gives_equal_bytes(tmp_path):
    volume = ct()
    for name in ("a.nii.gz", "other.nii.gz"):
        write_image(tmp_path / name, volume.array, volume)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.nii.gz", "other.nii.gz"))
    assert first == second
    assert gzip.decompress(first)[352:] == volume.array.tobytes()


@pytest.mark.parametrize("step", [-1, 2])
def test_views_are_written_in_their_order(tmp_path, step):
    volume = ct((6, 4, 5))
    part = volume.array[::step]
    like = new_volume(np.zeros(part.shape, np.int16), volume.grid.spacing, volume.grid.affine)
    write_image(tmp_path / "a.nii.gz", part, like)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, part)


def test_wrong_arrays_are_not_written(tmp_path):
    volume = ct()
    labels = np.ones(SHAPE, np.uint8)
    for write, array in (
        (write_label, labels[:-1]),
        (write_label, labels[None]),
        (write_label, labels.astype(np.int16) * 256),
        (write_label, labels.astype(np.int16) * -1),
        (write_label, labels.astype(np.float32)),
        (write_image, labels),
        (write_image, labels.astype(np.float64)),
        (write_image, labels.astype(np.int16).T),
    ):
        with pytest.raises(ValueError, match=r"a\.nii\.gz"):
            write(tmp_path / "a.nii.gz", array, volume)
    with pytest.raises(ValueError, match="must end in"):
        write_label(tmp_path / "a.mha", labels, volume)
    assert os.listdir(tmp_path) == []
    write_label(tmp_path / "a.nii.gz", labels.astype(bool), volume)
    assert read_label(tmp_path / "a.nii.gz").array.dtype == np.uint8


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    volume = ct()
    path = tmp_path / "a.nii.gz"
    write_image(path, volume.array, volume)
    before = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Problems, match=r"a.nii.gz: no space left on the disk .*; free some space"):
        write_image(path, volume.array + 1, volume)
    assert os.listdir(tmp_path) == ["a.nii.gz"]
    assert path.read_bytes() == before


def test_written_files_have_the_usual_permissions(tmp_path):
    volume = ct()
    write_image(tmp_path / "a.nii.gz", volume.array, volume)
    (tmp_path / "b").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


# ---------------------------------------------------------------------------------------------
# Grids and orientations


def test_new_volume_has_axes_along_ras_by_default():
    grid = new_volume(np.zeros(SHAPE, np.int16), (5.0, 0.8, 0.9)).grid
    assert (grid.shape, grid.spacing) == (SHAPE, pytest.approx((5.0, 0.8, 0.9)))
    assert grid.orientation == "RAS"
    np.testing.assert_allclose(grid.affine, np.diag([0.9, 0.8, 5.0, 1.0]), rtol=1e-7)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1


@pytest.mark.parametrize(
    ("affine", "cause"),
    [
        (SHEARED, "sheared"),
        (np.diag([2.0, 3.0, 0.0, 1.0]), "singular"),
        (np.diag([2.0, 3.0, 5.0, 1.0]), "in pixdim"),
    ],
)
def test_new_volume_refuses_what_the_reader_refuses(affine, cause):
    with pytest.raises(VolumeError, match=cause):
        new_volume(np.zeros(SHAPE, np.int16), (4.0, 3.0, 2.0), affine)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_canonical_and_back_in_all_48_orientations(axes):
    """A voxel keeps its place in the world, and the way back is exact."""
    volume = ct(axes=axes, spacing=(5.0, 0.8, 0.9), origin=(10, -20, 30))
    grid = volume.grid
    assert grid.orientation == axes
    canonical = to_canonical(volume.array, grid)
    assert np.shares_memory(canonical, volume.array)
    assert canonical.shape == canonical_shape(grid)
    back = from_canonical(canonical, grid)
    assert np.shares_memory(back, volume.array)
    np.testing.assert_array_equal(back, volume.array)

    places = [(grid.affine @ (x, y, z, 1))[:3] for z, y, x in np.ndindex(SHAPE)]
    corner = np.min(places, axis=0)
    steps = np.array(canonical_spacing(grid)[::-1])
    for place, value in zip(places, volume.array.ravel(), strict=True):
        x, y, z = np.rint((place - corner) / steps).astype(int)
        assert canonical[z, y, x] == value


@given(volumes(np.uint8))
def test_canonical_agrees_with_simpleitk(volume):
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "a.nii"))
        write_label(path, volume.array, volume)
        turned = sitk.DICOMOrient(sitk.ReadImage(path), "RAS")
    np.testing.assert_array_equal(
        to_canonical(volume.array, volume.grid), sitk.GetArrayFromImage(turned)
    )
    np.testing.assert_array_equal(canonical_spacing(volume.grid), turned.GetSpacing()[::-1])


@given(st.sampled_from(ORIENTATIONS), st.sampled_from(["i2", "u2", "i4", "f4", "f8"]))
def test_hash_of_an_image_stored_in_another_way(axes, dtype):
    array = np.arange(60, dtype=np.int16).reshape(SHAPE)
    affine = affine_of(axes, (1.0, 1.0, 1.0))
    shape = canonical_shape(ct(axes=axes).grid)  # what is stored as SHAPE has it in RAS order
    stored = from_canonical(array.reshape(shape), ct(axes=axes).grid)
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder, "a.nii"), nifti(stored.astype(dtype), affine=affine))
        expected = voxel_hash(new_volume(array.reshape(shape), (2.0, 3.0, 4.0)))
        assert voxel_hash(read_image(path)) == expected
    as_float = new_volume(stored.astype(np.float32), (1.0, 1.0, 1.0), affine)
    assert voxel_hash(as_float) == expected


def test_hash_tells_voxels_shapes_and_labels_apart():
    volume = ct()
    hashes = {voxel_hash(volume)}
    changed = volume.array.copy()
    changed[1, 2, 3] += 1
    for array in (changed, volume.array[:, :, ::-1], volume.array.reshape(4, 3, 5)):
        hashes.add(voxel_hash(new_volume(array, (5.0, 0.8, 0.9))))
    hashes.add(voxel_hash(new_volume(changed + np.float32(0.5), (5.0, 0.8, 0.9))))
    hashes.add(voxel_hash(new_volume(np.ones(SHAPE, np.uint8), (1, 1, 1))))
    hashes.add(voxel_hash(new_volume(np.ones(SHAPE, np.int16), (1, 1, 1))))
    assert len(hashes) == 7
    assert all(len(digest) == 32 for digest in hashes)


def test_grids_that_differ():
    grid = ct((10, 40, 50)).grid

    def difference(shape=(10, 40, 50), **changes):
        return grid.difference(ct(shape, **changes).grid)

    assert difference() == ""
    assert difference((11, 40, 50)) == "size 50 x 40 x 10 against 50 x 40 x 11"
    assert difference(spacing=(5.0, 0.8, 0.95)) == (
        "spacing 0.9 x 0.8 x 5 against 0.95 x 0.8 x 5 mm"
    )
    assert difference(origin=(1, 0, 0)) == (
        "origin (0.00, 0.00, 0.00) against (1.00, 0.00, 0.00) mm (RAS)"
    )
    assert difference(origin=(0, 0.9 * GRID_TOLERANCE_MM, 0)) == ""
    assert difference(tilt=(0, 0, 2)) == "direction turned by 2 degrees"
    assert difference(axes="RPS") == "direction LPS against RPS"
    assert "direction LPS against RAS, origin" in difference(axes="RAS", origin=(9, 9, 9))
    slightly = ct((10, 400, 500), tilt=(0, 0, 0.015)).grid
    assert ct((10, 400, 500)).grid.difference(slightly) == "corners up to 0.144 mm apart"


def test_grids_of_one_slice_have_a_spacing_too():
    first, second = (new_volume(np.zeros((1, 4, 5)), (mm, 1.0, 1.0)).grid for mm in (2.0, 3.0))
    assert "spacing" in first.difference(second)


def test_rotation_of_the_tests_is_one():
    turn = rotation((10, 20, 30))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


# ---------------------------------------------------------------------------------------------
# Real CTs


def is_image(path) -> bool:
    return path.name.endswith("_0000.nii.gz")


@pytest.mark.real_data
@pytest.mark.parametrize("name", READABLE)
def test_real_volumes_as_simpleitk_reads_them(real_data, tmp_path, name):
    path = real_data / f"{name}.nii.gz"
    volume = (read_image if is_image(path) else read_label)(path)
    reference = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(reference))
    assert volume.array.dtype == (np.int16 if is_image(path) else np.uint8)
    assert volume.grid.spacing == pytest.approx(reference.GetSpacing()[::-1], rel=1e-6)
    lps = np.diag([-1, -1, 1])
    np.testing.assert_allclose(lps @ volume.grid.origin, reference.GetOrigin(), atol=1e-3)
    direction = np.reshape(reference.GetDirection(), (3, 3))
    np.testing.assert_allclose(lps @ volume.grid.direction, direction, atol=1e-5)
    canonical = sitk.GetArrayFromImage(sitk.DICOMOrient(reference, "RAS"))
    np.testing.assert_array_equal(to_canonical(volume.array, volume.grid), canonical)
    assert volume.grid.difference(read_frame(path).grid) == ""

    write_label(tmp_path / "label.nii.gz", (volume.array > 0).astype(np.uint8), volume)
    written = sitk.ReadImage(str(tmp_path / "label.nii.gz"))
    for fact in GEOMETRY:
        assert getattr(written, fact)() == getattr(reference, fact)()


@pytest.mark.real_data
def test_real_orientations_are_one_canonical_volume(real_data):
    for ending, read in (("", read_label), ("_0000", read_image)):
        stored = [
            read(real_data / f"geometry/crop_{axes}{ending}.nii.gz")
            for axes in ("RAS", "LPS", "IPL")
        ]
        assert [volume.grid.orientation for volume in stored] == ["RAS", "LPS", "IPL"]
        assert len({voxel_hash(volume) for volume in stored}) == 1
        for volume in stored:
            np.testing.assert_array_equal(to_canonical(volume.array, volume.grid), stored[0].array)


@pytest.mark.real_data
@pytest.mark.parametrize("ending", ["", "_0000"])
def test_real_shear_is_refused(real_data, ending):
    path = real_data / f"geometry/shear_sform{ending}.nii.gz"
    error = refusal(read_image if ending else read_label, path)
    assert "sheared by 0.05" in error.cause


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("case", "ml"),
    [
        ("00061", {2: 313.26, 13: 282.52, 14: 110.99}),
        ("00062", {2: 247.54, 13: 241.10, 14: 4.63}),
        ("00113", {2: 211.25, 13: 219.64, 14: 150.76}),
        ("00152", {2: 194.18, 13: 193.85, 14: 9.49}),
    ],
)
def test_real_label_volumes(real_data, case, ml):
    label = read_label(real_data / f"labels_only/kits19_case_{case}_flare.nii.gz")
    assert label.grid.orientation == "IPL"
    found = {value: np.count_nonzero(label.array == value) * label.grid.voxel_ml for value in ml}
    assert found == pytest.approx(ml, abs=0.006)


@pytest.mark.real_data
def test_a_truncated_real_ct_is_refused(real_data, tmp_path):
    path = tmp_path / "a.nii.gz"
    shutil.copyfile(real_data / "geometry/crop_RAS_0000.nii.gz", path)
    os.truncate(path, path.stat().st_size // 2)
    assert "truncated" in refusal(read_image, path).cause
