"""Numbers that are no HU are told, with the cure; true HU pass, however they were cut or shown."""

import numpy as np
import pytest
from scipy import ndimage

from panorgan.cases.hounsfield import is_empty, not_hounsfield
from panorgan.cases.phantom import draw_patient, plans
from panorgan.io.volumes import mend_image

CTS = (
    *("images/TSexample", "images/LIDC0314_chest_upperabd_z275", "geometry/crop_RAS"),
    *("geometry/crop_thick6mm", "geometry/scl_inter_uint16", "geometry/shear_sform"),
)


def body(shape=(24, 48, 48)) -> np.ndarray:
    """HU of a round body in air: fat around organs, a spine, noise."""
    _, y, x = np.indices(shape)
    away = np.hypot(y - 24, x - 24)
    hu = np.select([away < 3, away < 13, away < 18], [400, 50, -100], -1000)
    return (hu + np.random.default_rng(0).normal(0, 15, shape)).astype(np.int16)


def whole(values) -> np.ndarray:
    return np.clip(np.rint(values), -32768, 32767).astype(np.int16)


def outside(hu: np.ndarray, value: int) -> np.ndarray:
    """Padding around the scanner's circle."""
    _, height, width = hu.shape
    y, x = np.ogrid[:height, :width]
    circle = np.hypot((y - height / 2) / height, (x - width / 2) / width) < 0.5
    return np.where(circle, hu, value).astype(np.int16)


def window(hu: np.ndarray, low: int, high: int, top: int) -> np.ndarray:
    return whole((np.clip(hu, low, high).astype(float) - low) / (high - low) * top)


CONVERT = "convert it again from its source with its slope and intercept"
WRONG = {
    "offset": (lambda hu: whole(hu + 1024.0), "subtract 1024"),
    "offset, cut": (lambda hu: whole(np.clip(hu + 1024.0, 0, 4095)), "subtract 1024"),
    "offset, padded": (lambda hu: outside(whole(hu + 1024.0), -2000), "subtract 1024"),
    "offset of 8192": (lambda hu: whole(hu + 8192.0), "subtract 8192"),
    "intercept twice": (lambda hu: whole(hu - 1024.0), "add 1024"),
    "0 to 1": (lambda hu: np.clip((hu + 1000) / 2000, 0, 1).astype(np.float32), CONVERT),
    "-1 to 1": (lambda hu: np.clip(hu / 1000, -1, 1).astype(np.float32), CONVERT),
    "z-scores": (lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32), CONVERT),
    "attenuation": (lambda hu: ((hu / 1000 + 1) * 0.19).astype(np.float32), CONVERT),
    "a picture": (lambda hu: window(hu, -160, 240, 255), CONVERT),
    "a picture in floats": (lambda hu: np.float32(window(hu, -160, 240, 2550) / 10), CONVERT),
    "a picture of all": (lambda hu: window(hu, hu.min(), hu.max(), 255), CONVERT),
    "a signed picture": (lambda hu: window(hu, -160, 240, 255) - np.int16(128), CONVERT),
    "a lung window": (lambda hu: window(hu, -1350, 150, 255), CONVERT),
    "half": (lambda hu: whole(hu / 2), "multiply by 2"),
    "double": (lambda hu: whole(hu * 2.0), "divide by 2"),
    "tenfold": (lambda hu: whole(hu * 10.0), CONVERT),
    "half, then the intercept": (lambda hu: whole((hu + 1024) / 2 - 1024), CONVERT),
    "double, then the intercept": (lambda hu: whole((hu + 1024.0) * 2 - 1024), CONVERT),
    "wrong sign": (lambda hu: whole(-hu.astype(float)), "change the sign"),
    "unsigned": (lambda hu: hu.view(np.uint16).astype(np.float32), CONVERT),
    "other byte order": (lambda hu: hu.byteswap(), CONVERT),
    "nothing below 0": (lambda hu: np.clip(hu, 0, None), CONVERT),
    "labels": (lambda hu: np.int16(hu > 0) * 3 + np.int16(hu > 200), "give the CT that belongs"),
    "many labels": (lambda hu: window(hu, 0, 400, 117), "give the CT that belongs to it"),
}
RIGHT = {
    "as it is": lambda hu: hu,
    "floats": lambda hu: hu + np.float32(0.25),
    **{f"padded by {hu}": lambda ct, hu=hu: outside(ct, hu) for hu in (-3024, -2048, -2000, -1024)},
    "cut to 12 bits": lambda hu: np.clip(hu, -1024, 3071),
    "bone window": lambda hu: np.clip(hu, -450, 1050),
    "wide bone window": lambda hu: np.clip(hu, -500, 1300),
    "abdominal window": lambda hu: np.clip(hu, -160, 240),
    "lung window": lambda hu: np.clip(hu, -1350, 150),
    "contrast": lambda hu: np.where((hu > 30) & (np.indices(hu.shape)[0] % 4 == 0), hu + 200, hu),
    "noise": lambda hu: whole(hu + np.random.default_rng(1).normal(0, 100, hu.shape)),
    "smooth": lambda hu: whole(ndimage.gaussian_filter(hu.astype(np.float32), 1)),
}


def with_metal(hu: np.ndarray) -> np.ndarray:
    z, y, x = (slice(size // 3, size // 2) for size in hu.shape)
    metal = hu.copy()
    metal[z, y, x] = np.random.default_rng(2).integers(3000, 30000, hu[z, y, x].shape)
    return metal


def turned(hu: np.ndarray) -> np.ndarray:
    """Padding and a window, interpolated."""
    padded = outside(np.clip(hu, -1024, 1300), -3024).astype(np.float32)
    return whole(ndimage.rotate(padded, 12, (1, 2), order=3, cval=-3024, reshape=False))


RIGHT |= {"metal": with_metal, "turned": turned}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_numbers_of_a_body(how):
    spoil, cure = WRONG[how]
    found = not_hounsfield(spoil(body()))
    assert found is not None
    assert found[0].startswith("its numbers do not look like HU: ")
    assert found[1].startswith(cure)
    assert cure.startswith("give") or found[1].endswith(CONVERT)


@pytest.mark.parametrize("how", RIGHT)
def test_true_hu_of_a_body(how):
    assert not_hounsfield(RIGHT[how](body())) is None


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        ("offset", "44% lie above 500"),
        ("0 to 1", "they lie between 0 and 1"),
        ("a picture", "they go from 0 to 255, as a picture's do"),
        ("nothing below 0", "none is negative, and they go up to 446"),
        ("intercept twice", "0.0% lie where fat and soft tissue do"),
        ("double", "55% lie below -1100, and air is -1000"),
        ("half", "air is at -501, not at -1000"),
        ("labels", "they lie between 0 and 4, as in a label map"),
    ],
)
def test_the_cause_is_named(spoil, cause):
    assert not_hounsfield(WRONG[spoil][0](body()))[0].endswith(f"HU: {cause}")


@pytest.mark.parametrize(
    "crop",
    [
        np.s_[:, 16:32, 16:32],  # organs alone
        np.s_[:, 12:36, 20:28],  # organs and fat
        np.s_[4:20, 20:28, 20:28],  # a spine
    ],
)
def test_tight_crops_have_neither_air_nor_padding(crop):
    hu = body()[crop]
    assert hu.min() > -200
    assert not_hounsfield(hu) is None
    assert not_hounsfield(np.float32(hu) + np.float32(0.5)) is None
    assert not_hounsfield(whole(hu + 1024.0))[1].startswith("subtract 1024")
    assert not_hounsfield(np.float32(hu) / 1000) is not None


def test_a_bladder_full_of_contrast_is_no_offset():
    hu = body()[:, 12:36, 12:36]
    hu[:, 8:14, 8:16] += 1000
    assert not_hounsfield(hu) is None


def test_a_few_voxels_tell_nothing():
    assert not_hounsfield(np.zeros((9, 10, 11), np.int16)) is None
    assert not_hounsfield(np.arange(1000, dtype=np.int16).reshape(10, 10, 10)) is not None


def test_one_number_everywhere():
    assert is_empty(body()) is None
    assert is_empty(np.full((2, 3, 4), 0.5, np.float32)) == (
        "is empty: every voxel is 0.5",
        "convert it again from its source, or leave the case out",
    )


@pytest.mark.parametrize("name", list(plans())[::6])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((28, 56, 80), (6.0, 4.0, 4.0)), ((20, 32, 44), (9.0, 7.0, 7.0))]
)
def test_the_phantom_looks_like_hu(name, shape, spacing):
    image = draw_patient(name, seed=1, shape=shape, spacing_mm=spacing).image
    assert not_hounsfield(image) is None


@pytest.mark.real_data
@pytest.mark.parametrize("name", CTS)
def test_real_cts(real_data, name):
    hu = mend_image(real_data / f"{name}_0000.nii.gz")[0].array
    assert [how for how, change in RIGHT.items() if not_hounsfield(change(hu))] == []
    assert [how for how, (spoil, _) in WRONG.items() if not not_hounsfield(spoil(hu))] == []


@pytest.mark.real_data
def test_real_cts_say_how_to_mend_them(real_data):
    hu = mend_image(real_data / "images/TSexample_0000.nii.gz")[0].array
    for spoil, cure in WRONG.values():
        assert not_hounsfield(spoil(hu))[1].startswith(cure)
