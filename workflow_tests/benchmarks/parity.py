"""Labels of panorgan beside those of stock nnU-Net 2 with the same weights, model by model.

    python workflow_tests/benchmarks/parity.py [--student MODEL] [--teacher MODEL] [--data FOLDER]

The demo's student is exported for nnU-Net by `panorgan convert`; its teacher, whose network nnU-Net
has not, runs in nnU-Net's predictor. The other models are of nnU-Net's own networks, as those of
other people: trained here for a minute on phantoms, so that what they say is clear. Both predict
without mirroring, with tiles half a patch apart. Images are the phantom in many forms and, with
--data or PANORGAN_REAL_DATA, real CTs. Each way labels each image in a process of its own; seconds
are from a process that has imported all to the label map on the disk.

nnU-Net adds up tiles in float16, so near a border its labels are random in the last digits. To tell
that from errors it also runs with sums in float32, and of voxels that differ from those it is told
how many have two highest logits within 0.001, 0.01 and 0.1.

--quick: one model and one image, in seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _agreement import LARGE, agreement
from _stock import (
    MARGINS,
    PLACE,
    label_by_stock,
    margins_in_labels,
    stock_predictor,
    sums_in_fp32,
    write_stock_model,
)

from panorgan.cases.phantom import case_files, draw_patient, phantom_cases, write_case
from panorgan.config.labels import load_labels
from panorgan.config.registry import NONZERO
from panorgan.config.settings import Config
from panorgan.inference.predictor import Predictor
from panorgan.io.resources import peak_memory
from panorgan.io.volumes import Volume, new_volume, read_image, read_label, write_image, write_label
from panorgan.nnunet.models.convert import convert
from panorgan.nnunet.models.model import load_model, save_model
from panorgan.nnunet.models.stock import plain_unet, stock_network, unet_arguments
from panorgan.nnunet.models.version2 import ORIENTATIONS
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan
from panorgan.nnunet.preprocess import preprocess_image

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results/demo"
STUDENTS = RESULTS / "round-1/student/stage2/seed-0/model", REPOSITORY / "docs/demo_model"
"""The demo's own where there is one, else the small one in the repository."""
TEACHER = RESULTS / "teacher/seed-0/model"
DEMO = yaml.safe_load((REPOSITORY / "config/demo.yaml").read_text())

STOCK, EXACT = "stock", "stock, sums in fp32"
OURS = tuple(
    f"{engine} {precision}" for engine in ("openvino", "torch") for precision in ("fp32", "bf16")
)
WAYS = (STOCK, EXACT, *OURS)

ORGANS = {"liver": ["liver"], "spleen": ["spleen"], "kidneys": ["right_kidney", "left_kidney"]}
ORGANS |= {"stomach": ["stomach"], "aorta": ["aorta"]}
"""Classes of the models that are trained here: what can be learnt in a minute."""
HU = {"mean": 60.0, "median": 60.0, "std": 60.0, "min": -1000.0, "max": 1500.0} | {
    "percentile_00_5": -150.0,
    "percentile_99_5": 250.0,
}

Case = tuple[Volume, np.ndarray]


# ---------------------------------------------------------------------------------------------
# Models


def foreign_plan(
    classes: Sequence[str],
    *,
    spacing: Sequence[float] = (6.0, 4.0, 4.0),
    patch_size: Sequence[int] = (16, 48, 64),
    features: Sequence[int] = (16, 32, 32),
    kernel_sizes: Sequence[Sequence[int]] = ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides: Sequence[Sequence[int]] = ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    residual: bool = False,
    reader: str = "NibabelIOWithReorient",
    normalisation: str = "CTNormalization",
    transpose: Sequence[int] = (0, 1, 2),
) -> dict[str, Any]:
    """A plan as nnU-Net's planner writes it; sizes are in the order of the network's axes."""
    recipe = {
        "spacing_mm": list(spacing),
        "patch_size": list(patch_size),
        "batch_size": 2,
        "network": Config().student.network.model_dump(),
        "training": {"batch_dice": False},
    }
    plan = make_plan(recipe, classes, HU, (28, 56, 80), (6.0, 4.0, 4.0))
    del plan["panorgan"]
    configuration = configuration_of(plan)[1]
    sizes = [list(features), [list(k) for k in kernel_sizes], [list(s) for s in strides]]
    configuration["architecture"] = plain_unet(*sizes, 2)
    if residual:
        blocks = {"n_blocks_per_stage": [1, 2, 2]}
        configuration["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.unet."
            "ResidualEncoderUNet",
            **unet_arguments(*sizes, blocks, [1] * (len(features) - 1), dim=len(patch_size)),
        }
    configuration["normalization_schemes"] = [normalisation]
    backward = [list(transpose).index(axis) for axis in range(3)]
    return plan | {
        "dataset_name": "Dataset042_CT",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": backward,
    }


FOREIGN: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual encoder": {"residual": True},
    "anisotropic": {
        "spacing": (8.0, 2.5, 2.5),
        "patch_size": (8, 80, 96),
        "kernel_sizes": ((1, 3, 3), (1, 3, 3), (3, 3, 3)),
        "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2)),
    },
    "three folds": {"folds": ("0", "1", "2")},
    "as stored": {"reader": "SimpleITKIO"},
    "axes transposed": {
        "transpose": (1, 0, 2),
        "spacing": (4.0, 6.0, 4.0),
        "patch_size": (48, 16, 64),
        "strides": ((1, 1, 1), (2, 1, 2), (2, 2, 2)),
    },
    "z-score": {"normalisation": "ZScoreNormalization"},
}
"""How models of nnU-Net's differ from the plain one; `folds` are the names of theirs."""


def train(
    plan: Mapping[str, Any],
    classes: Sequence[str],
    cases: Iterable[Case],
    iterations: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Weights of the network of a plan, trained for a moment: soft Dice and cross-entropy."""
    orientation = ORIENTATIONS[plan["image_reader_writer"]]
    own = {**plan, "panorgan": {"orientation": orientation, "classes": list(classes)}}
    configuration = configuration_of(plan)[1]
    patch = configuration["patch_size"]
    data = []
    for volume, label in cases:
        made = preprocess_image(volume, own, label)
        missing = [
            max(0, size - there) for size, there in zip(patch, made.data.shape[1:], strict=True)
        ]
        around = [(0, 0), *((0, n) for n in missing)]
        data.append((np.pad(made.data, around), np.pad(made.seg.clip(0), around)))
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = stock_network(configuration["architecture"], 1, 1 + len(classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=iterations)
    for _ in range(iterations):
        image, label = data[random.integers(len(data))]
        wanted = np.argwhere(label[0] == random.integers(1 + len(classes)))
        middle = wanted[random.integers(len(wanted))] if len(wanted) else [0, 0, 0]
        tile = [slice(None)]
        for centre, size, there in zip(middle, patch, label.shape[1:], strict=True):
            start = int(np.clip(centre - size // 2, 0, there - size))
            tile.append(slice(start, start + size))
        x, y = (torch.from_numpy(part[tuple(tile)]) for part in (image, label))
        logits = network(x[None])
        shares, truth = logits.softmax(1), torch.nn.functional.one_hot(y.long(), logits.shape[1])
        truth = truth.movedim(-1, 1)
        both = (shares * truth).sum((0, 2, 3, 4))
        sizes = (shares + truth).sum((0, 2, 3, 4))
        dice = ((2 * both + 1) / (sizes + 1)).mean()
        loss = torch.nn.functional.cross_entropy(logits, y.long()) - dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.state_dict()


def write_foreign(
    folder: Path,
    name: str,
    classes: Sequence[str],
    cases: Sequence[Case],
    iterations: int,
    **changes: Any,
) -> Path:
    """One of `FOREIGN`, trained, as a folder of nnU-Net's."""
    how = FOREIGN[name] | changes
    folds = how.pop("folds", ("0",))
    plan = foreign_plan(classes, **how)
    weights = {
        fold: train(plan, classes, cases, iterations, seed) for seed, fold in enumerate(folds)
    }
    write_stock_model(folder, plan, make_dataset_json(classes, ignore=False), weights)
    return folder


def write_student(source: Path, folder: Path) -> Path:
    """A student of ours as a folder of nnU-Net's, cropped as nnU-Net crops."""
    _write_cropping_as_stock(source, folder / "ours")
    (line,) = convert(folder / "ours", folder / "stock", to="nnunet")
    return Path(line.partition(": ")[0])


def write_teacher(source: Path, folder: Path) -> Path:
    """A copy of a teacher, cropping as nnU-Net crops."""
    _write_cropping_as_stock(source, folder)
    return folder


def _write_cropping_as_stock(source: Path, folder: Path) -> None:
    model = load_model(source)
    plan = deepcopy(dict(model.plan))
    plan["panorgan"]["recipe"]["crop"] = NONZERO
    save_model(folder, model.network, plan, model.dataset_json, {})


def training_cases(count: int) -> list[Case]:
    """Phantoms of the demo, their organs numbered as in `ORGANS`."""
    values = {organ.name: organ.value for organ in load_labels().organs}
    numbers = np.zeros(256, np.uint8)
    for number, names in enumerate(ORGANS.values(), 1):
        numbers[[values[name] for name in names]] = number
    found = []
    settings = DEMO["phantom"]
    for case in _phantoms("train")[:count]:
        patient = draw_patient(case, **settings)
        spacing = tuple(np.linalg.norm(patient.affine[:3, :3], axis=0)[::-1].tolist())
        volume = new_volume(patient.image, spacing, patient.affine)
        found.append((volume, numbers[patient.truth]))
    return found


def _phantoms(split: str) -> list[str]:
    return [case.case for case in phantom_cases(Path()) if case.split == split]


# ---------------------------------------------------------------------------------------------
# Images


def write_images(folder: Path, data: Path | None) -> dict[str, Path]:
    """Images by name: a phantom in many forms, legs, and of real CTs those that there are."""
    case = next(case for case in phantom_cases(folder) if case.split == "validation")
    write_case(case, **DEMO["phantom"])
    phantom = read_image(case_files(case)["image"])
    array, grid = phantom.array, phantom.grid
    tilt = np.eye(4)
    turn = np.deg2rad(12)
    tilt[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    patient = draw_patient(case.case, **DEMO["phantom"])
    spacing = tuple(np.linalg.norm(patient.affine[:3, :3], axis=0)[::-1].tolist())
    across = (spacing[0] * 3, *spacing[1:])
    middle = len(patient.image) // 2
    around = ((2, 2), (40, 40), (40, 40))
    made = {
        "phantom": phantom,
        "oblique": new_volume(array, grid.spacing, tilt @ grid.affine),
        "thick slices": new_volume(patient.image[::3], across),
        "air around": new_volume(np.pad(patient.image, around, constant_values=-1000), spacing),
        "1 slice": new_volume(patient.image[middle : middle + 1], spacing),
        "3 slices": new_volume(patient.image[middle : middle + 3], spacing),
        "legs": new_volume(_legs((40, 60, 100)), (5.0, 4.0, 4.0)),
    }
    found = {}
    for name, volume in made.items():
        found[name] = folder / f"{name.replace(' ', '-')}_0000.nii.gz"
        write_image(found[name], np.ascontiguousarray(volume.array), volume)
    if data is not None:
        for name, file in REAL.items():
            found[name] = data / file
    return found


REAL = {
    "real abdomen": "images/TSexample_0000.nii.gz",
    "real, oblique": "geometry/crop_oblique12x7z_0000.nii.gz",
    "real, 6 mm slices": "geometry/crop_thick6mm_0000.nii.gz",
    "real chest": "images/LIDC0314_chest_upperabd_z275_0000.nii.gz",
}


def _legs(shape: Sequence[int]) -> np.ndarray:
    """Two of muscle and bone, in air: another region of the body than all models know."""
    z, y, x = np.indices(shape)
    hu = np.full(shape, -1000.0)
    for side in (0.3, 0.7):
        radius = np.hypot(y - shape[1] / 2, x - shape[2] * side) / (1 + z / shape[0])
        hu[radius < 10] = 55
        hu[radius < 2] = 700
    noise = np.random.default_rng(0).normal(0, 12, shape)
    return (hu + noise).round().astype(np.int16)


# ---------------------------------------------------------------------------------------------
# Both ways


def labeller(way: str, model: Path, threads: int) -> Callable[[Path, Path], Path]:
    """A function that labels an image in this process into a folder and gives the file."""
    torch.set_num_threads(threads)
    if way in (STOCK, EXACT):
        predictor = stock_predictor(model)

        def by_stock(image: Path, out: Path) -> Path:
            if way == STOCK:
                return label_by_stock(predictor, [image], out)[0]
            with sums_in_fp32(), margins_in_labels():
                return label_by_stock(predictor, [image], out)[0]

        return by_stock
    engine, precision = way.split()
    own = Predictor(model, "cpu", precision, engine=engine, threads=threads)
    if own.way.precision != precision:
        raise ValueError(f"{way} cannot be had here")

    def by_panorgan(image: Path, out: Path) -> Path:
        volume = read_image(image)
        target = out / image.name.replace("_0000", "")
        write_label(target, own.predict(volume), volume)
        return target

    return by_panorgan


def compare(found: np.ndarray, stock: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """How a label map agrees with nnU-Net's.

    Parameters
    ----------
    found, stock
        Label maps.
    exact
        nnU-Net's with sums in float32, its margins in it.

    Returns
    -------
    dict
        What `agreement` tells of `stock` and of `exact`; and of voxels that differ from `exact` how
        many there are and how many have their highest logits within each of `MARGINS`.
    """
    close, labels = exact // PLACE, exact % PLACE
    differ = found != labels
    return {
        "stock": agreement(found, stock),
        "exact": agreement(found, labels),
        "differ": int(differ.sum()),
        "within": {
            str(margin): int((differ & (close > number)).sum())
            for number, margin in enumerate(MARGINS)
        },
    }


def measure(way: str, model: Path, images: Sequence[Path], out: Path, threads: int) -> None:
    """Label each image in a child of this process, which has imported all; print its figures."""
    for image in images:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                start = time.perf_counter()
                file = labeller(way, model, threads)(image, out)
                seconds = time.perf_counter() - start
                peak = peak_memory() / 2**20
                figures = {"file": str(file), "s": seconds, "mb": peak}
                os.write(write_end, json.dumps(figures).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        print("figures", said or "{}", flush=True)


def run(
    way: str, model: Path, images: Mapping[str, Path], out: Path, threads: int
) -> dict[str, dict[str, Any]]:
    """Figures of each image, from processes of their own; none where one failed."""
    listed = map(str, images.values())
    done = subprocess.run(
        [sys.executable, __file__, "--measure", way, model, out, str(threads), *listed],
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(threads)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("figures ")]
    figures = [json.loads(line.removeprefix("figures ")) for line in lines]
    if not all(figures) or len(figures) != len(images):
        print(f"{way} failed: {done.stderr[-1500:]}", file=sys.stderr)
    figures += [{}] * (len(images) - len(figures))
    return dict(zip(images, figures, strict=True))


# ---------------------------------------------------------------------------------------------


QUICK: dict[str, Any] = {
    "data": None,
    "models": ["plain"],
    "images": ["3 slices"],
    "ways": ["openvino fp32", "torch fp32"],
    "threads": 1,
    "cases": 1,
    "iterations": 10,
}
"""What --quick changes unless it is said beside."""


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        way, model, out, threads, *images = sys.argv[2:]
        measure(way, Path(model), [Path(image) for image in images], Path(out), int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    student = next((path for path in STUDENTS if path.exists()), STUDENTS[0])
    parser.add_argument("--student", type=Path, default=student, help="of the demo")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="of the demo")
    data = os.environ.get("PANORGAN_REAL_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="of real CTs")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--images", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", choices=OURS, default=OURS, help="of panorgan")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=150, help="of the trainings here")
    parser.add_argument("--cases", type=int, default=8, help="for the trainings here")
    parser.add_argument("--quick", action="store_true", help="few and small ones, in seconds")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
        arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = write_images(work / "images", arguments.data)
        images = _chosen(images, arguments.images)
        makers = _chosen(_makers(arguments), arguments.models)
        for name, make in makers.items():
            model = make(work / "models" / name.replace(" ", "-"))
            figures[name] = one_model(model, images, arguments.ways, work / name, arguments.threads)
            print(table(name, figures[name]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))
    print(summary(figures))


def _chosen(known: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    if unknown := {*(names or ())} - {*known}:
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return {name: known[name] for name in names or known}


def _makers(arguments: argparse.Namespace) -> dict[str, Callable[[Path], Path]]:
    """What makes each model, given a folder."""
    made: dict[str, Callable[[Path], Path]] = {}
    for name, source, write in (
        ("student", arguments.student, write_student),
        ("teacher", arguments.teacher, write_teacher),
    ):
        if source.exists():
            made[name] = lambda folder, source=source, write=write: write(source, folder)
        else:
            print(f"without {name}: there is no {source}", file=sys.stderr)
    cases: list[Case] = []
    for name in FOREIGN:

        def make(folder: Path, name: str = name) -> Path:
            cases.extend(training_cases(arguments.cases) if not cases else [])
            return write_foreign(folder, name, list(ORGANS), cases, arguments.iterations)

        made[name] = make
    return made


def one_model(
    model: Path, images: Mapping[str, Path], ways: Sequence[str], work: Path, threads: int
) -> dict[str, dict[str, Any]]:
    """Figures of each image and way."""
    runs = {
        way: run(way, model, images, work / way.replace(", ", "-").replace(" ", "-"), threads)
        for way in (STOCK, EXACT, *ways)
    }
    found: dict[str, dict[str, Any]] = {}
    for name in images:
        labels = {
            way: read_label(Path(figures[name]["file"])).array
            for way, figures in runs.items()
            if figures[name]
        }
        found[name] = {way: runs[way][name] for way in runs}
        for way in labels:
            if STOCK in labels and EXACT in labels:
                plain = labels[way] % PLACE if way == EXACT else labels[way]
                found[name][way] |= compare(plain, labels[STOCK], labels[EXACT])
    return found


def table(model: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A model's figures as Markdown."""
    margins = " / ".join(f"{margin:g}" for margin in MARGINS)
    lines = [
        f"### {model}",
        "",
        "| image | way | equal, % | inside, % | lowest DSC (class, voxels) | "
        f"from {LARGE} voxels | differ from fp32 sums (within {margins}) | s | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for image, ways in figures.items():
        for way, f in ways.items():
            if "stock" not in f:
                lines.append(f"| {image} | {way} | failed |")
                continue
            found = f["stock"]
            within = " / ".join(str(count) for count in f["within"].values())
            lowest = _number(found["lowest_dsc"])
            if found["class"] is not None:
                lowest += f" ({found['class']}, {found['voxels']})"
            cells = [
                *(image, way, percent(found["equal"]), percent(found["equal_inside"])),
                *(lowest, _number(found["lowest_dsc_of_large"])),
                *(f"{f['differ']} ({within})", f"{f['s']:.1f}", f"{f['mb']:.0f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def summary(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The worst of all images of each model and way, and the sum of what differs, as Markdown."""
    lines = [
        "| model | way | equal, % | inside, % | DSC of the worst class | "
        f"from {LARGE} voxels | differ from fp32 sums, of all images | s | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, images in figures.items():
        for way in next(iter(images.values())):
            known = [ways[way] for ways in images.values() if "stock" in ways[way]]
            if not known:
                lines.append(f"| {model} | {way} | failed |")
                continue

            def lowest(key: str, known: Sequence[Mapping[str, Any]] = known) -> float | None:
                found = (one["stock"][key] for one in known)
                return min((value for value in found if value is not None), default=None)

            cells = [
                *(model, way, percent(lowest("equal")), percent(lowest("equal_inside"))),
                *(_number(lowest("lowest_dsc")), _number(lowest("lowest_dsc_of_large"))),
                *(
                    f"{sum(one['differ'] for one in known):,}",
                    f"{sum(one['s'] for one in known):.0f}",
                ),
                f"{max(one['mb'] for one in known):,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


if __name__ == "__main__":
    main()
