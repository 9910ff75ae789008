"""One CT through a network: `panorgan predict` and stock nnU-Net 2's `nnUNetv2_predict`.

    python workflow_tests/benchmarks/predict.py [--network teacher] [--load 2] [--slices 500 1000]

Each way is a process of its own, from the start of Python to the label map on the disk: imports,
model, reading, preprocessing, sliding window of half a patch without mirroring, export, writing.
All have the same random weights in the network of the recipe: time and memory do not depend on
them, but labels are noise, almost everywhere near a border, so their agreement with nnU-Net's is
the lowest that there can be. nnU-Net gets the student as `panorgan convert` exports it, and the
teacher's network, which it has not, in its own predictor.

Ways: ``stock``: nnU-Net with threads and processes as they come; ``stock tuned``: OMP_NUM_THREADS
and torch's threads as --threads, and one process at either end; ``panorgan``: engine and precision
that are chosen here, or --precision; ``ENGINE PRECISION EXPORT``: just that, such as ``torch bf16
nearest``. panorgan labels the CT --runs times: the first pays for what a GPU's libraries load.

MB is the peak of the process, `all` that of it and its helpers together (files and shared memory
counted once, looked at ten times a second). On a CPU the floor stands beside: multiplications of
all tiles at the best rate of a matrix product in that precision, measured in the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import panorgan.nnunet  # stands in for what nnU-Net imports, in its helpers too

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "config/demo.yaml"
STOCK, TUNED, OURS = "stock", "stock tuned", "panorgan"
ON_A_CPU = (
    *(STOCK, TUNED, "openvino bf16 smooth", "openvino bf16 nearest", "openvino fp32 smooth"),
    *("torch bf16 smooth", "torch fp32 smooth"),
)
ON_A_GPU = (OURS, STOCK)
INTENSITY = {"mean": 80.0, "median": 85.0, "std": 60.0, "min": -1000.0, "max": 1500.0} | {
    "percentile_00_5": -100.0,
    "percentile_99_5": 240.0,
}
MODEL, EXPORTED, IMAGE, LABEL = "model", "exported", "scan_0000.nii.gz", "scan.nii.gz"
LONG = ((0.8, 0.8, 0.8), (512, 512))
"""Spacing in mm and size in plane of long CTs."""
SIDE = 3072
"""Of the square matrices whose product is timed."""


# ---------------------------------------------------------------------------------------------
# What is predicted


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """A CT, a model folder, and one of nnU-Net's with the same weights."""
    import torch
    import yaml

    from panorgan.config.labels import load_labels
    from panorgan.config.registry import NONZERO
    from panorgan.config.settings import Config, load_config, merge
    from panorgan.nnunet.models.convert import convert
    from panorgan.nnunet.models.model import network_of, save_model
    from panorgan.nnunet.plans import make_dataset_json, make_plan

    write_ct(folder / IMAGE, arguments.shape, arguments.spacing)
    changes = {} if arguments.recipe == "full" else yaml.safe_load(DEMO.read_text())
    config = load_config(merge(Config().model_dump(), changes))
    # As nnU-Net crops, so that both see the same.
    recipe = getattr(config, arguments.network).model_dump() | {"crop": NONZERO}
    labels = load_labels()
    classes = [labels.tumour.name] if arguments.network == "teacher" else labels.names
    plan = make_plan(recipe, classes, INTENSITY, arguments.shape, arguments.spacing)
    dataset_json = make_dataset_json(classes, ignore=False)
    torch.manual_seed(0)
    save_model(folder / MODEL, network_of(plan, dataset_json), plan, dataset_json, {})
    if arguments.network == "student":
        convert(folder / MODEL, folder / EXPORTED, to="nnunet")


def write_ct(path: Path, shape: list[int], spacing: list[float]) -> None:
    """A patient of the phantom."""
    from _scans import write_scan

    coarse = [max(1, n // 64) for n in shape]
    image, label = write_scan(
        path.parent, 0, shape=shape, spacing_mm=spacing, coarse=[min(coarse[0], 4), *coarse[1:]]
    )
    label.unlink()
    image.rename(path)


# ---------------------------------------------------------------------------------------------
# One way, in a process of its own


def panorgan(way: str, folder: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of imports, model and each run, by stage."""
    start = time.perf_counter()
    from panorgan.inference.files import predict_files
    from panorgan.inference.predictor import Predictor

    imported = time.perf_counter()
    chosen = ("auto", arguments.precision, "smooth") if way == OURS else way.split()
    engine, precision, export = chosen
    predictor = Predictor(
        folder / MODEL,
        arguments.device,
        precision,
        engine=engine,
        export=export,
        tile_step=arguments.step,
        threads=arguments.threads,
    )
    loaded = time.perf_counter()
    runs = []
    for number in range(arguments.runs):
        begin = time.perf_counter()
        place = out / str(number) if number else out
        report = predict_files(folder / IMAGE, place, predictor, lambda line: None)
        (case,) = report["cases"].values()
        stages = ("read_s", "preprocess_s", "network_s", "export_s", "write_s")
        runs.append(
            {stage: case[stage] for stage in stages}
            | {"case_s": time.perf_counter() - begin}
            | {"peak_gpu_mb": case["peak_gpu_mb"] if arguments.device == "cuda" else None}
        )
    used = predictor.way
    return {
        "how": f"{used.engine} {used.version}, {used.precision}, {export}",
        "import_s": imported - start,
        "model_s": loaded - imported,
        "runs": runs,
    }


def stock(way: str, folder: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same of nnU-Net's predictor, once; it does not tell the stages of a case apart."""
    start = time.perf_counter()
    import torch
    from _stock import stock_predictor

    imported = time.perf_counter()
    processes = arguments.processes
    if way == TUNED:
        torch.set_num_threads(arguments.threads)
        processes = 1
    (model,) = folder.glob(f"{EXPORTED}/*/*") if (folder / EXPORTED).exists() else [folder / MODEL]
    predictor = stock_predictor(model, arguments.device, arguments.step)
    # A machine with a GPU may lack SimpleITK; of this reader it sees the same voxels.
    predictor.plans_manager.plans["image_reader_writer"] = "NibabelIOWithReorient"
    loaded = time.perf_counter()
    out.mkdir()
    predictor.predict_from_files(
        [[str(folder / IMAGE)]],
        [str(out / LABEL.removesuffix(".nii.gz"))],
        num_processes_preprocessing=processes,
        num_processes_segmentation_export=processes,
    )
    done, on_gpu = time.perf_counter(), arguments.device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    return {
        "how": f"torch {torch.__version__.partition('+')[0]}, {torch.get_num_threads()} threads",
        "import_s": imported - start,
        "model_s": loaded - imported,
        "runs": [{"case_s": done - loaded, "peak_gpu_mb": peak}],
    }


def arithmetic(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Multiplications of a tile, tiles, and the best rate of matrix products by precision."""
    import torch

    from panorgan.inference.window import Window
    from panorgan.io.volumes import read_image
    from panorgan.nnunet.models.model import load_model
    from panorgan.nnunet.plans import configuration_of
    from panorgan.nnunet.preprocess import image_bands

    model = load_model(folder / MODEL)
    patch = configuration_of(model.plan)[1]["patch_size"]
    size = image_bands(read_image(folder / IMAGE), model.plan).size
    rates = {}
    torch.set_num_threads(arguments.threads)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, SIDE, SIDE, dtype=dtype)
        out, best = a @ b, float("inf")
        until = time.perf_counter() + 6
        while time.perf_counter() < until:
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - begin)
        rates[name] = SIDE**3 / best / 1e12
    gmac = multiplications(model.network, patch) / 1e9
    tiles = Window(size, patch, 2, arguments.step).tiles
    seconds = {name: gmac * tiles / 1e3 / rate for name, rate in rates.items()}
    return {"gmac_a_tile": gmac, "tiles": tiles, "tmac_a_s": rates, "floor_s": seconds}


def multiplications(network: Any, patch: list[int]) -> int:
    """Of a tile's convolutions."""
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    total = 0

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        places = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
        total += layer.weight.numel() * places[0, 0].numel()

    for layer in network.modules():
        if isinstance(layer, _ConvNd):
            layer.register_forward_hook(count)
    # Shapes alone, on what passes for a CPU: autocast knows no device `meta`.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network(torch.empty(1, 1, *patch))
    return total


def measure(way: str, folder: Path, out: Path, arguments: argparse.Namespace) -> None:
    """One way in this process: its figures as the last line."""
    if way == "arithmetic":
        print(json.dumps(arithmetic(folder, arguments)))
        return
    from panorgan.io.resources import peak_memory

    found = (stock if way in (STOCK, TUNED) else panorgan)(way, folder, out, arguments)
    peak = peak_memory() / 2**20
    print(json.dumps(found | {"peak_mb": peak}))


# ---------------------------------------------------------------------------------------------
# All of them, one after the other


def run(way: str, folder: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A way's figures from a process of its own; none if it failed."""
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if way == TUNED:
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += ["--step", str(arguments.step), "--runs", str(arguments.runs)]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--measure", way, str(folder), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        peak: list[float] = [0]
        watcher = threading.Thread(target=watch, args=(process, peak), daemon=True)
        watcher.start()
        said = process.communicate()[0]
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        print(f"{way} failed (exit code {process.returncode})", file=sys.stderr)
        return {}
    found = json.loads(said.splitlines()[-1])
    again = sum(figures["case_s"] for figures in found.get("runs", [])[1:])
    together = max(peak[0], found.get("peak_mb", 0))
    return {"process_s": seconds - again, **found, "peak_of_all_mb": together}


def watch(process: subprocess.Popen, peak: list[float]) -> None:
    """Keep the most memory, in MB, that a process and its helpers hold together.

    Files and shared memory count once, as all have the same ones open. Only counters are read:
    looking at the pages themselves (smaps) holds up the process, and takes most of a core.
    """
    import psutil

    parent = psutil.Process(process.pid)
    while process.poll() is None:
        own, shared = 0, [0]
        with suppress(psutil.Error, OSError):  # one has just ended
            for one in (parent, *parent.children(recursive=True)):
                lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
                held = {line.partition(":")[0]: line.split()[1] for line in lines if "kB" in line}
                own += int(held.get("RssAnon", 0))
                shared.append(int(held.get("RssFile", 0)) + int(held.get("RssShmem", 0)))
        peak[0] = max(peak[0], (own + max(shared)) / 1024)
        time.sleep(0.1)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("teacher", "student"), default="student")
    parser.add_argument("--recipe", choices=("full", "demo"), default="full")
    parser.add_argument("--shape", type=int, nargs=3, default=(134, 512, 512), help="z y x")
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.5, 0.8, 0.8), help="mm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help=f"of the way {OURS}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3, help="of stock, for either end")
    parser.add_argument("--ways", nargs="*", help=f"default: {', '.join(ON_A_CPU)}")
    parser.add_argument("--step", type=float, default=0.5, help="of the tiles, in patches")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside")
    parser.add_argument(
        "--slices", type=int, nargs="+", default=[], help="also CTs so long, tiles a patch apart"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, *places = arguments.measure
        measure(way, *map(Path, places), arguments)
        return
    if arguments.ways is None:
        arguments.ways = ON_A_GPU if arguments.device == "cuda" else ON_A_CPU
    figures: dict[str, Any] = {
        "network": arguments.network,
        "shape": list(arguments.shape),
        "spacing_mm": list(arguments.spacing),
        "threads": arguments.threads,
        "load": arguments.load,
        "ways": {},
        "long": {},
    }

    def keep() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments)
        if arguments.device == "cpu" and arguments.ways:
            figures |= run("arithmetic", folder, folder, arguments)
        for way in arguments.ways:
            with busy(arguments.load):
                figures["ways"][way] = run(way, folder, place(folder, way), arguments)
            keep()
        add_agreement(figures["ways"], folder)
        arguments.step, arguments.runs = 1.0, 1
        for count in arguments.slices:
            write_ct(folder / IMAGE, [count, *LONG[1]], LONG[0])
            out = folder / f"long-{count}"
            figures["long"][count] = run(OURS, folder, out, arguments)
            keep()
    keep()
    report(figures, arguments.device)
    if not all((figures["ways"] | figures["long"]).values()):
        sys.exit(1)


def place(folder: Path, way: str) -> Path:
    return folder / way.replace(" ", "-")


def add_agreement(ways: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Of all label maps with the first of nnU-Net's, where there is one."""
    from _agreement import agreement

    from panorgan.io.volumes import read_label

    reference = next((way for way in (STOCK, TUNED) if ways.get(way)), None)
    if reference is None:
        return
    expected = read_label(place(folder, reference) / LABEL).array
    for way, found in ways.items():
        if found:
            label = read_label(place(folder, way) / LABEL).array
            found["agreement"] = agreement(label, expected)


def report(figures: Mapping[str, Any], device: str) -> None:
    size = " x ".join(map(str, figures["shape"]))
    beside = f", {figures['load']} busy processes beside" if figures["load"] else ""
    print(f"{figures['network']}, a CT of {size}, {device}{beside}; seconds")
    if "floor_s" in figures:
        rates = ", ".join(
            f"{name} {figures['tmac_a_s'][name]:.2f} TMAC/s: {seconds:.1f} s"
            for name, seconds in figures["floor_s"].items()
        )
        product = f"{figures['gmac_a_tile']:.1f} GMAC x {figures['tiles']} tiles"
        print(f"floor: {product}; {rates}")
    stages = [f"{stage}_s" for stage in ("read", "preprocess", "network", "export", "write")]
    stages.append("case_s")
    heads = ["import", "model", *(stage.removesuffix("_s") for stage in stages)]
    heads += ["process", "MB", "all MB", "GPU MB", "equal %"]
    print(f"{'':28}" + "".join(f"{head:>11}" for head in heads))
    rows = figures["ways"] | {f"{n} slices": found for n, found in figures["long"].items()}
    for way, found in rows.items():
        for number, one in enumerate(found.get("runs", []), 1):
            first = found if number == 1 else {}
            agreement = first.get("agreement", {}).get("equal")
            values = [*(first.get(key) for key in ("import_s", "model_s")), *map(one.get, stages)]
            values += [first.get(key) for key in ("process_s", "peak_mb", "peak_of_all_mb")]
            values += [one["peak_gpu_mb"], agreement and 100 * agreement]
            digits = [2] * 9 + [0, 0, 0, 3]
            cells = (
                f"{'-':>11}" if value is None else f"{value:11.{n}f}"
                for value, n in zip(values, digits, strict=True)
            )
            print(f"{way:22} run {number}{''.join(cells)}")
        if "how" in found:
            print(f"{'':4}{found['how']}")


if __name__ == "__main__":
    main()
