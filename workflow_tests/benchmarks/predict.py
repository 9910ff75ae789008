"""One CT through a network: `panorgan predict` and stock nnU-Net 2's `nnUNetv2_predict`.

Each way is a process of its own: read, preprocess, sliding window of half a patch without
mirroring, export. `process` counts from the start of Python to the first label map on the disk,
`case` without imports and loading the model; stock's contains the start of its helpers. Both have
the network of the recipe with random weights, since time and memory do not depend on them: ours the
small or the attention U-Net, stock's its PlainConvUNet of the student's plan, or the attention
U-Net in its own predictor. What stock computes in is its choice (fp16 on a GPU, fp32 on a CPU),
ours that of `auto` or `--precision`. Ours labels the CT `--runs` times: the first pays for what a
GPU's libraries load when they are first used. Stock has its usual three processes that preprocess
and three that export, or `--processes`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from _scans import write_scan

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config, load_config, merge
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

WAYS = ("panorgan", "stock")
INTENSITY = {"mean": 80.0, "median": 85.0, "std": 60.0, "min": -1000.0, "max": 1500.0} | {
    "percentile_00_5": -100.0,
    "percentile_99_5": 240.0,
}
MODEL, IMAGE = "model", "image.nii.gz"


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """A CT and a model folder."""
    import torch

    from panorgan.nnunet.models.model import network_of, save_model

    write_scan(
        folder,
        0,
        shape=arguments.shape,
        spacing_mm=arguments.spacing,
        coarse=[max(1, n // 64) for n in arguments.shape],
    )
    changes = {} if arguments.recipe == "full" else yaml.safe_load(DEMO.read_text())
    recipe = getattr(load_config(merge(Config().model_dump(), changes)), arguments.network)
    labels = load_labels()
    classes = [labels.tumour.name] if arguments.network == "teacher" else labels.names
    plan = make_plan(recipe.model_dump(), classes, INTENSITY, arguments.shape, arguments.spacing)
    dataset_json = make_dataset_json(classes, ignore=False)
    torch.manual_seed(0)
    save_model(folder / MODEL, network_of(plan, dataset_json), plan, dataset_json, {})


DEMO = Path(__file__).parents[2] / "config/demo.yaml"


def panorgan(folder: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds and memory of each run, by stage."""
    import torch

    from panorgan.inference.predictor import Predictor
    from panorgan.io.volumes import read_image, write_label

    torch.set_num_threads(arguments.threads)
    predictor = Predictor(folder / MODEL, arguments.device, arguments.precision)
    found = []
    for number in range(arguments.runs):
        start = time.perf_counter()
        volume = read_image(folder / IMAGE)
        read = time.perf_counter()
        label = predictor.predict(volume)
        predicted = time.perf_counter()
        write_label(folder / f"panorgan-{number}.nii.gz", label, volume)
        report = predictor.last_report
        found.append(
            {
                "read_s": read - start,
                **{key: report[key] for key in ("preprocess_s", "network_s", "export_s")},
                "write_s": time.perf_counter() - predicted,
                "case_s": time.perf_counter() - start,
                "peak_gpu_mb": report["peak_gpu_mb"] if arguments.device == "cuda" else None,
            }
        )
    return found


def stock(folder: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The same of nnU-Net's predictor, once; it does not tell its stages apart."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    import panorgan.nnunet  # stands in for what nnU-Net imports and nobody needs  # noqa: F401
    from panorgan.nnunet.models.model import network_of
    from panorgan.nnunet.models.stock import plain_unet

    torch.set_num_threads(arguments.threads)
    plan, dataset_json = (
        json.loads((folder / MODEL / f"{name}.json").read_text()) for name in ("plans", "dataset")
    )
    name, configuration = configuration_of(plan)
    if name != "2d":
        own = configuration["architecture"]["arch_kwargs"]
        configuration["architecture"] = plain_unet(
            own["features"], own["kernel_sizes"], own["strides"], own["convs_per_stage"]
        )
    plan["image_reader_writer"] = "NibabelIOWithReorient"
    torch.manual_seed(0)
    network = network_of(plan, dataset_json)
    device = torch.device(arguments.device)
    predictor = nnUNetPredictor(use_mirroring=False, device=device, verbose=False)
    manager = PlansManager(plan)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration(name),
        [network.state_dict()],
        dataset_json,
        "nnUNetTrainer",
        None,
    )
    start = time.perf_counter()
    predictor.predict_from_files(
        [[str(folder / IMAGE)]],
        [str(folder / "stock")],
        num_processes_preprocessing=arguments.processes,
        num_processes_segmentation_export=arguments.processes,
    )
    seconds, on_gpu = time.perf_counter() - start, device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    return [{"case_s": seconds, "peak_gpu_mb": peak}]


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> None:
    """One way in this process: its figures as the last line."""
    runs = (panorgan if way == "panorgan" else stock)(folder, arguments)
    own, others = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({"runs": runs, "peak_mb": own, "peak_of_others_mb": others}))


def run(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A way's figures from a process of its own; none if it failed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--measure", way, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        # On a CPU the predictor's threads would wait for each other busily.
        env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"},
    )
    if done.returncode:
        print(f"{way} failed (exit code {done.returncode})", file=sys.stderr)
        return {}
    seconds = time.perf_counter() - start
    found = json.loads(done.stdout.splitlines()[-1])
    again = sum(figures["case_s"] for figures in found["runs"][1:])
    return {"process_s": seconds - again, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("teacher", "student"), default="student")
    parser.add_argument("--recipe", choices=("full", "demo"), default="full")
    parser.add_argument("--shape", type=int, nargs=3, default=(134, 512, 512), help="z y x")
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 0.8, 0.8), help="mm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3, help="of stock, for either end")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]), arguments)
        return
    figures: dict[str, Any] = {
        "network": arguments.network,
        "shape": list(arguments.shape),
        "spacing_mm": list(arguments.spacing),
        "ways": {},
    }
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), arguments)
        for way in arguments.ways:
            figures["ways"][way] = run(way, Path(name), arguments)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))
    report(figures, arguments.device)
    if not all(figures["ways"].values()):
        sys.exit(1)


def report(figures: Mapping[str, Any], device: str) -> None:
    size = " x ".join(map(str, figures["shape"]))
    print(f"{figures['network']}, a CT of {size}, {device}; seconds")
    stages = ("read_s", "preprocess_s", "network_s", "export_s", "write_s", "case_s")
    heads = (*(stage.removesuffix("_s") for stage in stages), "process", "MB", "GPU MB")
    print(f"{'':16}" + "".join(f"{head:>11}" for head in heads))
    for way, found in figures["ways"].items():
        for number, one in enumerate(found.get("runs", []), 1):
            whole = found["process_s"] if number == 1 else None
            memory = found["peak_mb"] if number == 1 else None
            values = [*(one.get(stage) for stage in stages), whole, memory, one["peak_gpu_mb"]]
            digits = [2] * 7 + [0, 0]
            cells = (
                f"{'-':>11}" if value is None else f"{value:11.{n}f}"
                for value, n in zip(values, digits, strict=True)
            )
            print(f"{way:10} run {number}{''.join(cells)}")


if __name__ == "__main__":
    main()
