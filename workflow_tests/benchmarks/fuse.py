"""Fusion of three label maps of 114x512x512 voxels, read from files and written to one.

Each way runs in a process of its own, several times; the fastest run counts. `simpleitk` does what
scripts commonly do (read, NumPy, write with the geometry copied), `nibabel` the same with uint8
arrays. `ours` is what `panorgan fuse` does for a case: it also checks and counts, and two threads
read. `one thread` is the same without the second. Prints seconds, the ratio to simpleitk and the
process's peak memory; our reading, which is inflating, apart from our own work. The ways take
turns, so that a busy machine slows all of them. All must write the same label, ours equal bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE, SPACING = (114, 512, 512), (2.5, 0.78, 0.78)
ANNOTATED = (1, 2, 3, 4, 13)
STATES = {value: "annotated" if value in ANNOTATED else "unknown" for value in range(1, 15)}
NAMES = ("partial", "tumour", "organs")


def synthetic() -> dict[str, np.ndarray]:
    """Ellipsoids for organs and a tumour; 6 % of the volume is foreground."""
    random = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]

    def ellipsoid(centre, radii):
        distances = ((axis - c) / r for axis, c, r in zip((z, y, x), centre, radii, strict=True))
        return sum(d**2 for d in distances) <= 1

    truth = np.zeros(SHAPE, np.uint8)
    truth[ellipsoid((60, 230, 180), (38, 90, 95))] = 1
    for value in range(2, 14):
        centre = random.uniform((25, 150, 120), (90, 370, 400))
        truth[ellipsoid(centre, random.uniform((8, 12, 12), (28, 45, 45)))] = value
    tumour = ellipsoid((55, 220, 200), (8, 18, 20)).astype(np.uint8)
    partial = np.where(np.isin(truth, ANNOTATED), truth, 0).astype(np.uint8)
    return {"partial": partial, "tumour": tumour, "organs": np.roll(truth, (1, 2), (0, 2))}


def apply_rules(partial: np.ndarray, tumour: np.ndarray, organs: np.ndarray) -> np.ndarray:
    """Both stages as one would write them in NumPy."""
    fused = np.array(partial)
    fused[tumour == 1] = 14
    for value in range(1, 14):
        if value not in ANNOTATED:
            fused[(fused == 0) & (organs == value)] = value
    return fused


def run_simpleitk(paths: list[Path], out: Path) -> dict[str, float]:
    import SimpleITK

    start = time.perf_counter()
    images = [SimpleITK.ReadImage(str(path)) for path in paths]
    arrays = [SimpleITK.GetArrayFromImage(image) for image in images]
    read = time.perf_counter()
    fused = apply_rules(*arrays)
    done = time.perf_counter()
    result = SimpleITK.GetImageFromArray(fused)
    result.CopyInformation(images[0])
    SimpleITK.WriteImage(result, str(out))
    return times(start, read, done)


def run_nibabel(paths: list[Path], out: Path) -> dict[str, float]:
    import nibabel

    start = time.perf_counter()
    images = [nibabel.load(path) for path in paths]
    arrays = [np.asarray(image.dataobj, np.uint8) for image in images]
    read = time.perf_counter()
    fused = apply_rules(*arrays)
    done = time.perf_counter()
    nibabel.Nifti1Image(fused, images[0].affine, images[0].header).to_filename(out)
    return times(start, read, done)


def run_ours(paths: list[Path], out: Path) -> dict[str, float]:
    return fuse_ours(paths, out, 2)


def run_one_thread(paths: list[Path], out: Path) -> dict[str, float]:
    return fuse_ours(paths, out, 1)


def fuse_ours(paths: list[Path], out: Path, threads: int) -> dict[str, float]:
    from panorgan.config.labels import load_labels
    from panorgan.fusing.fusion import fuse, read_together
    from panorgan.io.volumes import write_label

    labels = load_labels()
    start = time.perf_counter()
    volumes, problems = read_together(dict(zip(NAMES, paths, strict=True)), "", threads)
    assert not problems
    read = time.perf_counter()
    arrays = {name: volume.array for name, volume in volumes.items()}
    fused = fuse(**arrays, states=STATES, labels=labels, with_source=False)
    done = time.perf_counter()
    write_label(out, fused.label, volumes["partial"])
    return times(start, read, done)


def times(start: float, read: float, done: float) -> dict[str, float]:
    end = time.perf_counter()
    return {"total": end - start, "read": read - start, "fuse": done - read, "write": end - done}


WAYS = {
    "simpleitk": run_simpleitk,
    "nibabel": run_nibabel,
    "ours": run_ours,
    "one thread": run_one_thread,
}


def measure(way: str, folder: Path, repeats: int) -> None:
    """One way, in this process: prints its figures as JSON."""
    paths = [folder / f"{name}.nii.gz" for name in NAMES]
    runs = [WAYS[way](paths, folder / f"{way}.nii.gz") for _ in range(repeats)]
    fastest = min(runs, key=lambda run: run["total"])
    # Not ru_maxrss: a process inherits that from the one that started it.
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps(fastest | {"first": runs[0]["total"], "memory": memory}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]), arguments.repeats)
        return

    from panorgan.io.volumes import new_volume, read_label, write_label

    with tempfile.TemporaryDirectory() as folder:
        for name, array in synthetic().items():
            write_label(Path(folder) / f"{name}.nii.gz", array, new_volume(array, SPACING))
        results: dict[str, dict[str, float]] = {}
        for _ in range(arguments.turns):
            for way in WAYS:
                command = [sys.executable, __file__, "--repeats", str(arguments.repeats)]
                command += ["--measure", way, folder]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                row = json.loads(output)
                before = results.get(way, row)
                faster = min(row, before, key=lambda run: run["total"])
                worst = {"memory": max(row["memory"], before["memory"])}
                results[way] = faster | worst | {"first": min(row["first"], before["first"])}
        print(f"{'':10} {'total s':>8} {'ratio':>6} {'read':>6} {'fuse':>6} {'write':>6}", end="")
        print(f" {'first s':>8} {'peak MB':>8}")
        for way, row in results.items():
            ratio = results["simpleitk"]["total"] / row["total"]
            print(f"{way:10} {row['total']:8.3f} {ratio:6.1f} {row['read']:6.3f}", end="")
            print(f" {row['fuse']:6.3f} {row['write']:6.3f} {row['first']:8.3f}", end="")
            print(f" {row['memory']:8.0f}")
        written = [read_label(Path(folder) / f"{way}.nii.gz").array for way in WAYS]
        assert all(np.array_equal(written[0], other) for other in written[1:])
        ours = [(Path(folder) / f"{way}.nii.gz").read_bytes() for way in ("ours", "one thread")]
        assert ours[0] == ours[1]
    minutes = 4000 * results["ours"]["total"] / 60
    print(f"4,000 such cases, one after another: {minutes:.1f} min")


if __name__ == "__main__":
    main()
