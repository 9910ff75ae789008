"""Scans of any size for benchmarks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from panorgan.cases.phantom import draw_patient, phantom_cases
from panorgan.io.volumes import new_volume, write_image, write_label


def write_scan(
    folder: Path,
    number: int,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    coarse: Sequence[int] = (1, 1, 1),
) -> tuple[Path, Path]:
    """Write one of the phantom's patients as a CT and its label.

    Drawing one on the grid of a real CT takes minutes: it is drawn on a grid that is `coarse` times
    as coarse, spread to the nearest voxels of the finer one, and gets noise there.

    Parameters
    ----------
    folder
        Made if need be.
    number
        Which patient.
    shape, spacing_mm, coarse
        Along (z, y, x).

    Returns
    -------
    image, label : Path
        ``image.nii.gz`` and ``label.nii.gz``.
    """
    names = [case.case for case in phantom_cases(folder) if case.split == "validation"]
    patient = draw_patient(
        names[number],
        seed=0,
        shape=[-(-n // part) for n, part in zip(shape, coarse, strict=True)],
        spacing_mm=[mm * part for mm, part in zip(spacing_mm, coarse, strict=True)],
    )
    nearest = np.ix_(
        *(np.arange(n) * own // n for n, own in zip(shape, patient.image.shape, strict=True))
    )
    noise = np.random.default_rng(number).normal(0, 10, shape)
    image = (patient.image[nearest] + noise).round().astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "image.nii.gz", folder / "label.nii.gz"
    volume = new_volume(image, tuple(spacing_mm))
    write_image(files[0], image, volume)
    write_label(files[1], patient.truth[nearest], volume)
    return files
