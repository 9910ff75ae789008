"""Speed and digits of DSC and NSD: panorgan against the surface-distance package.

Both score the same pair of label maps by the same rules (profile flare23-2024), reading apart.

    nice python workflow_tests/benchmarks/metrics.py [--shape 114 512 512] [--salt 0.02]
"""

import argparse
import time
import warnings

import numpy as np
from scipy import ndimage

from panorgan.labels import load_labels
from panorgan.metrics import PROFILES, score_case

PROFILE = "flare23-2024"

# Centre (z, y, x) and radii as fractions of the volume, roughly as the organs lie and are large.
ORGANS = {
    1: ((0.62, 0.42, 0.34), (0.26, 0.17, 0.15)),
    2: ((0.40, 0.60, 0.36), (0.20, 0.06, 0.05)),
    3: ((0.70, 0.55, 0.70), (0.18, 0.10, 0.06)),
    4: ((0.52, 0.44, 0.54), (0.07, 0.04, 0.13)),
    5: ((0.50, 0.57, 0.52), (0.60, 0.025, 0.025)),
    6: ((0.50, 0.53, 0.46), (0.60, 0.025, 0.03)),
    7: ((0.58, 0.55, 0.43), (0.05, 0.03, 0.015)),
    8: ((0.58, 0.55, 0.58), (0.05, 0.03, 0.015)),
    9: ((0.50, 0.36, 0.36), (0.09, 0.04, 0.04)),
    10: ((0.88, 0.53, 0.53), (0.14, 0.02, 0.02)),
    11: ((0.66, 0.36, 0.60), (0.15, 0.09, 0.09)),
    12: ((0.44, 0.45, 0.43), (0.10, 0.05, 0.05)),
    13: ((0.42, 0.60, 0.66), (0.20, 0.06, 0.05)),
    14: ((0.62, 0.42, 0.30), (0.06, 0.04, 0.04)),
}


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of mean 0, deviation 1 and a length of about a ninth of each axis."""
    coarse = rng.normal(size=(9, 9, 9))
    return ndimage.zoom(coarse, np.divide(shape, 9), order=1)[tuple(map(slice, shape))]


def body(rng: np.random.Generator, shape: tuple[int, ...], error: float) -> np.ndarray:
    """A label map of bumpy ellipsoids; `error` moves and bumps them further."""
    shared = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    bumps = 0.3 * smooth_noise(shared, shape) + error * smooth_noise(rng, shape)
    for value, (centre, radii) in ORGANS.items():
        moved = np.array(centre) + error * 0.03 * rng.normal(size=3)
        z, y, x = (
            (np.arange(n) / n - middle) / radius
            for n, middle, radius in zip(shape, moved, radii, strict=True)
        )
        distance = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        labels[distance < 1 + bumps] = value
    return labels


def with_salt(rng: np.random.Generator, labels: np.ndarray, share: float) -> np.ndarray:
    """Replace a share of the voxels by random classes."""
    salted = rng.random(labels.shape, np.float32) < share
    return np.where(salted, rng.integers(1, 15, labels.shape, np.uint8), labels)


def by_package(prediction, reference, spacing, labels) -> list[tuple[float, float]]:
    """DSC and NSD of each class from the surface-distance package, official rules around it."""
    import surface_distance.metrics as package

    rules = PROFILES[PROFILE]
    prediction, reference = np.ascontiguousarray(prediction.T), np.ascontiguousarray(reference.T)
    scores = []
    for label in labels.labels:
        pred, ref = prediction == label.value, reference == label.value
        if not ref.any() or not pred.any():
            same = float(ref.any() == pred.any())
            scores.append((same, same))
            continue
        if label.crop_slices:
            slices = np.flatnonzero(ref.any(axis=(0, 1)))
            kept = slice(slices[0], max(slices[-1], slices[0] + 1))
            pred, ref = pred[:, :, kept], ref[:, :, kept]
        dsc = package.compute_dice_coefficient(ref, pred)
        nsd = 0.0
        if dsc >= rules.nsd_floor:
            distances = package.compute_surface_distances(ref, pred, spacing[::-1])
            nsd = package.compute_surface_dice_at_tolerance(distances, label.tolerance_mm)
        scores.append((np.round(dsc, 4), np.round(nsd, 4)))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(114, 512, 512))
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 0.78, 0.78))
    parser.add_argument("--salt", type=float, default=0.0, help="share of random voxels")
    parser.add_argument("--repeats", type=int, default=5, help="of ours; the minimum counts")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    shape = tuple(arguments.shape)
    spacing = tuple(np.float64(np.float32(arguments.spacing)))
    rng = np.random.default_rng(1)
    reference, prediction = body(rng, shape, 0.0), body(rng, shape, 0.1)
    if arguments.salt:
        prediction = with_salt(rng, prediction, arguments.salt)
    labels = load_labels()

    start = time.perf_counter()
    score_case(prediction[:1], reference[:1], spacing, labels, PROFILE)
    print(f"loading or compiling the kernels: {time.perf_counter() - start:.2f} s")
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        rows = score_case(prediction, reference, spacing, labels, PROFILE)
        seconds.append(time.perf_counter() - start)
    ours = min(seconds)

    start = time.perf_counter()
    theirs = by_package(prediction, reference, spacing, labels)
    package = time.perf_counter() - start

    print(f"{'class':18} {'DSC':>7} {'NSD':>7}   package")
    for row, (dsc, nsd) in zip(rows, theirs, strict=True):
        mark = "" if (row["dsc"], row["nsd"]) == (dsc, nsd) else "  differs"
        print(f"{row['name']:18} {row['dsc']:7.4f} {row['nsd']:7.4f}   {dsc:.4f} {nsd:.4f}{mark}")
    differing = sum(
        (row["dsc"] != dsc) + (row["nsd"] != nsd)
        for row, (dsc, nsd) in zip(rows, theirs, strict=True)
    )
    print(f"scores that differ: {differing} of {2 * len(rows)}")
    print(f"panorgan {ours:.4f} s, surface-distance {package:.2f} s, ratio {package / ours:.1f}")


if __name__ == "__main__":
    main()
