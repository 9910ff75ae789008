"""Speed, memory and digits of DSC and NSD: panorgan against other implementations.

All score the same pair of label maps by the same rules (profile flare23-2024), in memory, reading
apart, each in a process of its own. panorgan finds HD95, volumes and the scores by all profiles in
the same time; the others DSC and NSD alone. Each is repeated until 10 s are over, but --repeats
times at most; the fastest counts. Peak memory is that of the whole process, Python, libraries and
the two label maps (30 MB each) included. Scores that differ: of DSC and NSD to four decimals, from
those of panorgan with one thread.

    nice python workflow_tests/benchmarks/metrics.py [--shape 114 512 512] [--salt 0.02]

MONAI takes part if it is installed (`pip install --no-deps monai`), the challenge's official
functions if the environment variable PANORGAN_OFFICIAL_METRICS names a folder that holds its
SurfaceDice.py (JunMa11/FLARE, folder FLARE23). The official script itself ends at a name that it
never defines; here its functions are called in its order.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from panorgan.config.labels import Labels, load_labels
from panorgan.scoring.metrics import PROFILES, score_case

PROFILE = "flare23-2024"
OFFICIAL = "PANORGAN_OFFICIAL_METRICS"
ENOUGH_S = 10.0
Scores = list[tuple[float, float]]
"""DSC and NSD of every class."""

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


def ours(threads: int) -> Callable[..., Scores]:
    def scores(prediction, reference, spacing, labels) -> Scores:
        rows = score_case(prediction, reference, spacing, labels, PROFILE, threads=threads)
        return [(row["dsc"], row["nsd"]) for row in rows]

    return scores


def by_rules(score: Callable[..., tuple[float, float]]) -> Callable[..., Scores]:
    """The official rules around a function of two masks in x, y, z order, spacing and tolerance,
    which gives DSC and NSD."""

    def scores(prediction, reference, spacing, labels: Labels) -> Scores:
        # As the official script has them after reading: int8, in x, y, z order.
        prediction, reference = (
            np.ascontiguousarray(array.T).astype(np.int8) for array in (prediction, reference)
        )
        found = []
        for label in labels.labels:
            pred, ref = prediction == label.value, reference == label.value
            if not ref.any() or not pred.any():
                same = float(ref.any() == pred.any())
                found.append((same, same))
                continue
            if label.crop_slices:
                slices = np.flatnonzero(ref.any(axis=(0, 1)))
                kept = slice(slices[0], max(slices[-1], slices[0] + 1))
                pred, ref = pred[:, :, kept], ref[:, :, kept]
            dsc, nsd = score(ref, pred, spacing[::-1], label.tolerance_mm)
            found.append((float(np.round(dsc, 4)), float(np.round(nsd, 4))))
        return found

    return scores


def of_functions(module: Any) -> Callable[..., tuple[float, float]]:
    """DSC and NSD by surface-distance, or by the official copy of its functions."""

    def score(reference, prediction, spacing, tolerance) -> tuple[float, float]:
        dsc = module.compute_dice_coefficient(reference, prediction)
        if dsc < PROFILES[PROFILE].nsd_floor:
            return dsc, 0.0
        distances = module.compute_surface_distances(reference, prediction, spacing)
        return dsc, module.compute_surface_dice_at_tolerance(distances, tolerance)

    return score


def by_package() -> Callable[..., Scores]:
    return by_rules(of_functions(importlib.import_module("surface_distance.metrics")))


def by_official() -> Callable[..., Scores]:
    sys.path.insert(0, os.environ[OFFICIAL])
    return by_rules(of_functions(importlib.import_module("SurfaceDice")))


def by_monai(subvoxels: bool) -> Callable[..., Scores]:
    import torch
    from monai.metrics import compute_dice, compute_surface_dice

    torch.set_num_threads(1)

    def score(reference, prediction, spacing, tolerance) -> tuple[float, float]:
        ref, pred = (torch.from_numpy(mask.copy())[None, None] for mask in (reference, prediction))
        dsc = compute_dice(pred, ref).item()
        if dsc < PROFILES[PROFILE].nsd_floor:
            return dsc, 0.0
        nsd = compute_surface_dice(
            pred,
            ref,
            class_thresholds=[tolerance],
            include_background=True,
            spacing=list(spacing),
            use_subvoxels=subvoxels,
        )
        return dsc, nsd.item()

    return by_rules(score)


WAYS: dict[str, Callable[[], Callable[..., Scores]]] = {
    "panorgan, one thread": lambda: ours(1),
    "panorgan, two threads": lambda: ours(2),
    "official functions": by_official,
    "surface-distance": by_package,
    "MONAI, subvoxels": lambda: by_monai(True),
    "MONAI, default": lambda: by_monai(False),
}


def missing(way: str) -> str:
    """Why a way cannot be measured here, and what to do; empty if it can."""
    if way == "official functions":
        folder = os.environ.get(OFFICIAL)
        if not folder:
            return f"set {OFFICIAL} to a folder with SurfaceDice.py (JunMa11/FLARE, FLARE23)"
        if not (Path(folder) / "SurfaceDice.py").is_file():
            return f"{OFFICIAL}={folder} holds no SurfaceDice.py"
    if way.startswith("MONAI") and not importlib.util.find_spec("monai"):
        return "pip install --no-deps monai"
    return ""


def measure(way: str, folder: Path, spacing: tuple[float, ...], repeats: int) -> None:
    """One way, in this process: prints its figures as JSON."""
    warnings.filterwarnings("ignore")  # deprecated names that the others use
    prediction, reference = (np.load(folder / f"{name}.npy") for name in ("pred", "ref"))
    labels = load_labels()
    start = time.perf_counter()
    score = WAYS[way]()
    score(prediction[:2], reference[:2], spacing, labels)
    first = time.perf_counter() - start
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH_S:
        start = time.perf_counter()
        scores = score(prediction, reference, spacing, labels)
        seconds.append(time.perf_counter() - start)
    # Not ru_maxrss: a process inherits that from the one that started it.
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    figures = {"first": first, "seconds": min(seconds), "runs": len(seconds), "memory": memory}
    print(json.dumps(figures | {"scores": scores}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(114, 512, 512))
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 0.78, 0.78))
    parser.add_argument("--salt", type=float, default=0.0, help="share of random voxels")
    parser.add_argument("--repeats", type=int, default=20, help="at most")
    parser.add_argument("--cases", type=int, default=4000, help="that the estimate is for")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    spacing = tuple(np.float64(np.float32(arguments.spacing)))
    if arguments.measure:
        way, folder = arguments.measure
        measure(way, Path(folder), spacing, arguments.repeats)
        return

    shape = tuple(arguments.shape)
    rng = np.random.default_rng(1)
    reference, prediction = body(rng, shape, 0.0), body(rng, shape, 0.1)
    if arguments.salt:
        prediction = with_salt(rng, prediction, arguments.salt)
    start = time.perf_counter()
    score_case(prediction[:1], reference[:1], spacing, load_labels(), PROFILE)
    print(f"loading or compiling the kernels: {time.perf_counter() - start:.2f} s")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("pred", prediction), ("ref", reference)):
            np.save(Path(folder) / f"{name}.npy", array)
        for way in WAYS:
            if why := missing(way):
                print(f"{way}: not measured; {why}")
                continue
            command = [sys.executable, __file__, "--repeats", str(arguments.repeats)]
            command += ["--spacing", *map(str, arguments.spacing), "--measure", way, folder]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[way] = json.loads(output)

    first, *_ = results.values()
    base = next(way for way in ("official functions", "surface-distance") if way in results)
    print(f"{'class':18} {'DSC':>7} {'NSD':>7}")
    for label, (dsc, nsd) in zip(load_labels().labels, first["scores"], strict=True):
        print(f"{label.name:18} {dsc:7.4f} {nsd:7.4f}")
    print(f"{'':22} {'s':>8} {'ratio':>7} {'runs':>5} {'first s':>8} {'peak MB':>8}  differ")
    for way, row in results.items():
        differences = np.abs(np.subtract(row["scores"], first["scores"]))
        differ = f"{(differences > 0).sum()} of {differences.size}"
        if differences.any():
            differ += f", by up to {differences.max():.4f}"
        ratio = results[base]["seconds"] / row["seconds"]
        print(f"{way:22} {row['seconds']:8.4f} {ratio:7.1f} {row['runs']:5}", end="")
        print(f" {row['first']:8.2f} {row['memory']:8.0f}  {differ}")
    print(f"ratio: to {base}; first s: imports beside NumPy and SciPy, and a call on two slices")
    for way in ("panorgan, one thread", "panorgan, two threads", base):
        minutes = arguments.cases * results[way]["seconds"] / 60
        print(f"{arguments.cases:,} such pairs in memory, {way}: {minutes:.1f} min")


if __name__ == "__main__":
    main()
