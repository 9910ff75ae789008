"""Preprocessing of 20 cases for both networks against `nnUNetv2_preprocess` with one worker.

The command gets the same files and the same plans as a shard job of the workflow; both run as
processes of their own, one after the other. Prints seconds, peak memory of the largest process,
megabytes written, and how the results differ: intensities (in standard deviations), label voxels,
sampled places. Without `--data` the cases are ellipsoids in noise, stored as LPS.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from panorgan.cases.manifest import FACTS, Entry, write_manifest
from panorgan.config.labels import load_labels
from panorgan.config.settings import Config
from panorgan.io.volumes import (
    geometry_hash,
    new_volume,
    read_image,
    read_label,
    voxel_hash,
    write_image,
    write_label,
)
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

SPACING = (2.5, 0.78, 0.78)
SHARD = "evaluation-0"
DATASET = "Dataset001_panorgan"
INTENSITY = {
    "mean": 80.0,
    "median": 85.0,
    "std": 60.0,
    "min": -1000.0,
    "max": 1500.0,
    "percentile_00_5": -100.0,
    "percentile_99_5": 240.0,
}

# A process of its own, for a child's peak memory begins with that of the process that started it.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=sys.stderr, check=True)
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "memory": memory}))
"""


def draw(folder: Path, count: int, shape: tuple[int, ...]) -> list[tuple[Path, Path]]:
    """Write synthetic cases: a body, 14 organs in it and noise."""
    axes = np.ogrid[tuple(slice(0, 1, size * 1j) for size in shape)]

    def ellipsoid(centre, radii):
        return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1

    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    body = ellipsoid((0.5, 0.5, 0.5), (3, 0.37, 0.46))
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        for value in range(1, 15):
            size = 2.5 if value == 1 else 1
            centre = rng.uniform((0.2, 0.3, 0.25), (0.8, 0.7, 0.75))
            label[ellipsoid(centre, size * rng.uniform(0.03, 0.08, 3)) & body] = value
        hu = np.where(body, 20 + 8 * label, -1000) + 15 * rng.standard_normal(shape, np.float32)
        image = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
        like = new_volume(image, SPACING, affine)
        files.append((folder / f"c{number}_0000.nii.gz", folder / f"c{number}.nii.gz"))
        write_image(files[-1][0], image, like)
        write_label(files[-1][1], label, like)
    return files


def real(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """The images of a folder that have a label beside them or in `labels`, again and again."""
    labels = {path.name: path for path in folder.rglob("*.nii.gz") if "_0000" not in path.name}
    pairs = [
        (image, labels[image.name.replace("_0000", "")])
        for image in sorted(folder.rglob("*_0000.nii.gz"))
        if image.name.replace("_0000", "") in labels
    ]
    if not pairs:
        sys.exit(f"{folder}: no X_0000.nii.gz with its label X.nii.gz")
    return [pairs[number % len(pairs)] for number in range(count)]


def arrange(folder: Path, files: list[tuple[Path, Path]], network: str) -> dict:
    """What either program reads: nnU-Net's raw data and plans, and a manifest; returns the plan."""
    labels = load_labels()
    recipe = getattr(Config(), network).model_dump()
    one_class = network == "teacher"
    names = ["tumour"] if one_class else labels.names
    raw, preprocessed = folder / "raw" / DATASET, folder / "nnunet" / DATASET
    for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        path.mkdir(parents=True)
    entries = []
    for number, (image_file, label_file) in enumerate(files):
        case = f"case_{number:02}"
        paths = raw / f"imagesTr/{case}_0000.nii.gz", raw / f"labelsTr/{case}.nii.gz"
        shutil.copy(image_file, paths[0])
        image, label = read_image(image_file), read_label(label_file)
        array = (label.array == 1).astype(np.uint8) if one_class else label.array
        write_label(paths[1], array, label)
        facts = dict.fromkeys(FACTS, "") | {
            "grid": geometry_hash(image),
            "image_hash": voxel_hash(image),
            "label_hash": voxel_hash(new_volume(array, label.grid.spacing, label.grid.affine)),
        }
        states = dict.fromkeys(labels.values, "annotated")
        place = (case, "validation", SHARD, "", "", str(paths[0]), str(paths[1]), "")
        entries.append(Entry(*place, facts, states))
    write_manifest(folder / "manifest.tsv", entries, labels)
    plan = make_plan(recipe, names, INTENSITY, image.array.shape, SPACING)
    dataset = make_dataset_json(names, ignore=False) | {"numTraining": len(files)}
    (preprocessed / "plans.json").write_text(json.dumps(plan))
    for place in (raw, preprocessed):
        (place / "dataset.json").write_text(json.dumps(dataset))
    return plan


def run_ours(folder: Path) -> None:
    """A shard job, in this process."""
    from panorgan.run.store import ShardOutput
    from panorgan.stages.training import preprocess_cases

    preprocess_cases(
        str(folder / "manifest.tsv"),
        None,
        str(folder / "nnunet" / DATASET / "plans.json"),
        ShardOutput(folder / "store", folder / "ours.tsv", folder / "ours"),
        labels_file="config/labels.yaml",
    )


def measure(command: list[str], log: Path, **variables: str) -> dict[str, float]:
    """Seconds and peak memory (MB, of its largest process) of a command."""
    with open(log, "w") as file:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, **variables},
        )
    if done.returncode:
        sys.exit(log.read_text())
    return json.loads(done.stdout)


def compare(stock: Path, ours: Path) -> dict[str, float]:
    """How the results of both differ."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from panorgan.nnunet.case_file import load

    found = {"intensity": 0.0, "labels": 0, "voxels": 0, "places": 0}
    dataset = nnUNetDatasetBlosc2(str(stock))
    assert {*dataset.identifiers} == {path.stem for path in ours.glob("*.b2nd")}
    for case in dataset.identifiers:
        (data, seg, _, facts), (our_data, our_seg, _, our_facts) = dataset[case], load(ours, case)
        difference = float(np.abs(data[:] - our_data[:]).max())
        found["intensity"] = max(found["intensity"], difference)
        found["labels"] += int((seg[:] != our_seg[:]).sum())
        found["voxels"] += int(np.prod(seg.shape))
        for value, places in facts["class_locations"].items():
            same = np.array_equal(np.reshape(places, (-1, 4)), our_facts["class_locations"][value])
            found["places"] += not same
    return found


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=(80, 384, 384), help="z y x")
    parser.add_argument("--data", type=Path, help="folder of X_0000.nii.gz with labels X.nii.gz")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        run_ours(arguments.ours)
        return

    command = str(Path(sys.executable).parent / "nnUNetv2_preprocess")
    print(f"{'':18} {'s':>7} {'ratio':>6} {'peak MB':>8} {'ratio':>6} {'MB out':>7}")
    with tempfile.TemporaryDirectory() as name:
        drawn = Path(name, "cases")
        drawn.mkdir()
        if arguments.data:
            files = real(arguments.data, arguments.cases)
        else:
            files = draw(drawn, arguments.cases, tuple(arguments.shape))
        for network in ("teacher", "student"):
            folder = Path(name, network)
            plan = arrange(folder, files, network)
            configuration, content = configuration_of(plan)
            stock = measure(
                [command, "-d", "1", "-plans_name", "plans", "-c", configuration, "-np", "1"],
                folder / "nnunet.log",
                nnUNet_raw=str(folder / "raw"),
                nnUNet_preprocessed=str(folder / "nnunet"),
                nnUNet_results=str(folder / "results"),
            )
            ours = measure([sys.executable, __file__, "--ours", str(folder)], folder / "ours.log")
            places = folder / "nnunet" / DATASET / content["data_identifier"], folder / "ours"
            for way, row, place in zip(("nnU-Net", "panorgan"), (stock, ours), places, strict=True):
                print(
                    f"{network:8} {way:9} {row['seconds']:7.1f}"
                    f" {stock['seconds'] / row['seconds']:6.2f} {row['memory']:8.0f}"
                    f" {row['memory'] / stock['memory']:6.2f} {megabytes(place):7.0f}"
                )
            difference = compare(*places)
            print(
                f"{network:8} largest difference of an intensity {difference['intensity']:.2g};"
                f" labels differ in {difference['labels']} of {difference['voxels']} voxels,"
                f" sampled places in {difference['places']} classes"
            )
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
