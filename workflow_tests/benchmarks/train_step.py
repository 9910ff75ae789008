"""Training steps of stock nnU-Net 2 and ours: same plan, batch, preprocessed data and device.

The ways, each a process of its own that loads, augments and updates:

stock    nnUNetTrainer as it comes: its loaders with nnUNet_n_proc_DA = `--workers`, its own
         augmentation, SGD, and on a GPU fp16 and torch.compile. The student is its PlainConvUNet of
         the same plan, whose last decoder stage has a 1x3x3 kernel where ours has 3x3x3; the
         teacher is our network in its trainer.
workers  ours, augmented where it is loaded
device   ours, augmented in batches where the network is

Ours computes in the precision that `auto` picks (or `--precision`) and, on a GPU, in the setting
that its own search finds (panorgan.nnunet.speed). The ways take turns; whoever waits is stopped
with its loaders, so that nobody makes batches ahead meanwhile. Prints medians over the turns: steps
a second, the share of the time in which the processor works (on a GPU: its kernels' time in one
more, profiled turn; on a CPU: time outside of waiting), the share spent waiting for data; and peak
memory. Then what augmenting one batch takes alone, on the CPU and in batches on the device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from panorgan.config import Config, load_config
from panorgan.labels import load_labels
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

WAYS = ("stock", "workers", "device")
DATASET = "Dataset001_panorgan"
INTENSITY = {"mean": 80.0, "median": 85.0, "std": 60.0, "min": -1000.0, "max": 1500.0} | {
    "percentile_00_5": -100.0,
    "percentile_99_5": 240.0,
}
PHANTOM = {
    "full": {"shape": (48, 320, 420), "spacing_mm": (5.0, 0.85, 0.85)},
    "demo": {"shape": (28, 56, 80), "spacing_mm": (6.0, 4.0, 4.0)},
}
CASES = 3


def recipe_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The network's section of the config, with what the command line changes."""
    if arguments.recipe == "full":
        config = Config()
    else:
        demo = yaml.safe_load(Path("config/demo.yaml").read_text())
        config = load_config(merged(yaml.safe_load(Path("config/config.yaml").read_text()), demo))
    recipe = getattr(config, arguments.network).model_dump()
    recipe["patch_size"] = list(arguments.patch or recipe["patch_size"])
    recipe["batch_size"] = arguments.batch or recipe["batch_size"]
    recipe["training"]["threads"] = arguments.threads
    recipe["training"]["workers"] = arguments.workers
    return recipe


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, as Snakemake merges config files."""
    both = {k: v for k, v in base.items() if isinstance(v, Mapping) and k in over and over[k]}
    return {**base, **over, **{k: merged(v, over[k]) for k, v in both.items()}}


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """Plan and preprocessed cases, laid out as nnU-Net wants them."""
    from panorgan.nnunet.preprocess import preprocess_image, save
    from panorgan.volumes import read_image, read_label

    labels = load_labels()
    teacher = arguments.network == "teacher"
    names = [labels.tumour_name] if teacher else labels.names
    shape = PHANTOM[arguments.recipe]
    plan = make_plan(recipe_of(arguments), names, INTENSITY, shape["shape"], shape["spacing_mm"])
    base = folder / DATASET
    place = base / configuration_of(plan)[1]["data_identifier"]
    place.mkdir(parents=True)
    (base / "plans.json").write_text(json.dumps(plan))
    (base / "dataset.json").write_text(json.dumps(make_dataset_json(names, ignore=False)))
    for number, (image, label) in enumerate(real(arguments) or phantom(folder, arguments)):
        array = read_label(label).array
        array = (array == labels.tumour.value).astype("uint8") if teacher else array
        save(place, f"case_{number}", preprocess_image(read_image(image), plan, array))


def real(arguments: argparse.Namespace) -> list[tuple[Path, Path]]:
    """The images of `--data` that have a label there."""
    if not arguments.data:
        return []
    labels = {path.name: path for path in arguments.data.rglob("*.nii.gz")}
    images = sorted(arguments.data.rglob("*_0000.nii.gz"))
    pairs = [(i, labels.get(i.name.replace("_0000", ""))) for i in images]
    return [pair for pair in pairs if pair[1]] or sys.exit(f"{arguments.data}: no labelled case")


def phantom(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """The first labelled validation cases of the phantom."""
    from panorgan.phantom import case_files, phantom_cases, write_case

    cases = [case for case in phantom_cases(folder) if case.split == "validation"][:CASES]
    for case in cases:
        write_case(case, seed=0, **PHANTOM[arguments.recipe])
        files = case_files(case)
        yield files["image"], files["label"]


def stock_steps(folder: Path, device) -> Any:
    """Loader and step of nnU-Net's own trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from panorgan.nnunet.stock import plain_unet

    plan = json.loads((folder / DATASET / "plans.json").read_text())
    dataset_json = json.loads((folder / DATASET / "dataset.json").read_text())
    name, configuration = configuration_of(plan)
    if name != "2d":
        own = configuration["architecture"]["arch_kwargs"]
        configuration["architecture"] = plain_unet(
            own["features"], own["kernel_sizes"], own["strides"], own["convs_per_stage"]
        )
    plan["continue_training"] = False
    trainer = nnUNetTrainer(plan, name, "all", dataset_json, device)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    compiled = "compiled" if trainer._do_i_compile() else "not compiled"
    precision = "fp16" if device.type == "cuda" else "fp32"
    return loader, trainer.train_step, f"{precision}, {compiled}"


def our_steps(folder: Path, device, augment_on: str, precision: str) -> Any:
    """Loader and step of ours."""
    from panorgan.nnunet.batches import in_order
    from panorgan.nnunet.devices import resolve_precision
    from panorgan.nnunet.speed import fastest
    from panorgan.nnunet.trainer import make_trainer

    base = folder / DATASET
    plan = json.loads((base / "plans.json").read_text())
    trainer = make_trainer(plan, json.loads((base / "dataset.json").read_text()), device, folder)
    trainer.initialize(resolve_precision(precision, device), augment_on)
    place = base / configuration_of(plan)[1]["data_identifier"]
    cases = {path.stem: place for path in place.glob("*.pkl")}
    batches = trainer.training_batches(cases, 0)
    if device.type == "cuda":
        trainer.use(fastest(trainer, batches[0], 10**6)[0])
    workers, pin = trainer.training["workers"], device.type == "cuda"
    loader = in_order(batches, 0, 10**6, workers=workers, pin_memory=pin)
    trainer.network.train()
    under_way = []

    def step(batch: Any) -> None:
        """As the training does: a step's loss is waited for once the next is under way."""
        under_way.append(trainer.train_step(batch))
        if len(under_way) > 1:
            float(under_way.pop(0))

    return loader, step, f"{trainer.precision}, {trainer.setting}"


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> None:
    """One way in this process: for each line of the input a turn, and its figures in a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nnU-Net talks
    import torch

    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    make = stock_steps if way == "stock" else our_steps
    loader, step, how = make(
        folder, device, *([] if way == "stock" else [way, arguments.precision])
    )
    step(next(loader))
    print(json.dumps({"how": how}), file=answers)
    for line in sys.stdin:
        if line.strip() == "profile":
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                figures = turn(loader, step, arguments.steps)
            figures["busy"] = kernel_seconds(seen) / figures["seconds"]
        else:
            figures = turn(loader, step, arguments.steps)
        if device.type == "cuda":
            figures["gpu_mb"] = torch.cuda.max_memory_reserved() / 2**20
        figures["mb"] = peak_mb()
        print(json.dumps(figures), file=answers)


def turn(loader: Iterator, step: Any, steps: int) -> dict[str, float]:
    """Every step waits for a loss, ours for that before it: the clock need not wait for the GPU.

    A turn of ours therefore begins with the end of the step before it, and leaves its last to the
    next turn.
    """
    waited, start = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        step(batch)
    return {"seconds": time.perf_counter() - start, "waited": waited}


def peak_mb() -> float:
    """Peak memory of this process alone; what getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def kernel_seconds(profile: Any) -> float:
    """Time in which at least one kernel or copy ran."""
    from torch.autograd import DeviceType

    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == DeviceType.CUDA
    )
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


class Process:
    """A way's process, stopped with all its loaders except in its turns."""

    def __init__(self, way: str, folder: Path, command: list[str], workers: int):
        self.log = folder / f"{way}.log"
        variables = {
            "nnUNet_preprocessed": str(folder),
            "nnUNet_raw": str(folder),
            "nnUNet_results": str(folder / f"results-{way}"),
            "nnUNet_n_proc_DA": str(workers),
        }
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *command, "--measure", way, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, **variables},
            )
        self.how = self._answer()["how"]

    def turn(self, kind: str = "turn") -> dict[str, float]:
        os.killpg(self.process.pid, signal.SIGCONT)
        print(kind, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(self.log.read_text()[-3000:])
        os.killpg(self.process.pid, signal.SIGSTOP)
        return json.loads(line)

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def augmenting(folder: Path, arguments: argparse.Namespace) -> None:
    """Mean seconds of augmenting a batch, both ways."""
    import torch

    from panorgan.nnunet.augmentation import training_transforms
    from panorgan.nnunet.batches import own_random_numbers
    from panorgan.nnunet.trainer import make_trainer

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    base = folder / DATASET
    plan = json.loads((base / "plans.json").read_text())
    dataset_json = json.loads((base / "dataset.json").read_text())
    with redirect_stdout(sys.stderr):
        trainer = make_trainer(plan, dataset_json, device, folder)
    trainer.initialize("fp32", "device")
    place = base / configuration_of(plan)[1]["data_identifier"]
    batches = trainer.training_batches({path.stem: place for path in place.glob("*.pkl")}, 0)
    batch = batches[0]
    changes = training_transforms(
        trainer.patch_size,
        trainer.training["augmentation"],
        trainer._get_deep_supervision_scales(),
    )
    data, labels = batch["data"].to(device), batch["target"].to(device)
    times: dict[str, list[float]] = {"each on the CPU": [], "batched on the device": []}
    for number in range(-2, arguments.augmentations):
        start = time.perf_counter()
        with own_random_numbers(0, number):
            for image, label in zip(batch["data"], batch["target"], strict=True):
                changes(image=image.clone(), segmentation=label.clone())
        middle = time.perf_counter()
        trainer._augment(data, labels, (0, 0, number))
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 0:
            times["each on the CPU"].append(middle - start)
            times["batched on the device"].append(time.perf_counter() - middle)
    means = {name: sum(values) / len(values) for name, values in times.items()}
    for name, mean in means.items():
        ratio = means["each on the CPU"] / mean
        print(f"augmenting, {name:22} {1000 * mean:8.1f} ms a batch  {ratio:6.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("teacher", "student"), default="student")
    parser.add_argument("--recipe", choices=("full", "demo"), default="demo")
    parser.add_argument("--patch", type=int, nargs="+", help="instead of the recipe's")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--data", type=Path, help="folder of X_0000.nii.gz with labels X.nii.gz")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that load")
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--augmentations", type=int, default=60, help="batches for their times")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]), arguments)
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments)
        processes: dict[str, Process] = {}
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
        try:
            for way in arguments.ways:
                processes[way] = Process(way, folder, sys.argv[1:], arguments.workers)
            for number in range(arguments.turns + 1):
                for way in arguments.ways:
                    figures = processes[way].turn()
                    if number:  # the first warms up
                        turns[way].append(figures)
            for way in arguments.ways:
                if arguments.device == "cuda":
                    turns[way][-1]["busy"] = processes[way].turn("profile")["busy"]
        finally:
            for process in processes.values():
                process.end()
        report(turns, {way: process.how for way, process in processes.items()}, arguments)
        augmenting(folder, arguments)


def report(turns: Mapping[str, list[dict[str, float]]], how: Mapping[str, str], arguments) -> None:
    recipe = recipe_of(arguments)
    size = " x ".join(map(str, recipe["patch_size"]))
    print(f"{arguments.network}, {recipe['batch_size']} patches of {size}, {arguments.device}")
    print(f"{'':8} {'steps/s':>8} {'ratio':>6} {'busy %':>7} {'wait %':>7} {'MB':>7} {'GPU MB':>7}")
    seconds = {way: [t["seconds"] for t in found] for way, found in turns.items()}
    first = arguments.ways[0]
    for way, found in turns.items():
        pace = arguments.steps / median(seconds[way])
        ratio = median(a / b for a, b in zip(seconds[first], seconds[way], strict=True))
        wait = 100 * median(t["waited"] / t["seconds"] for t in found)
        busy = 100 * found[-1]["busy"] if "busy" in found[-1] else 100 - wait
        memory = f"{found[-1]['mb']:7.0f} {found[-1].get('gpu_mb', 0):7.0f}"
        print(f"{way:8} {pace:8.3f} {ratio:6.2f} {busy:7.1f} {wait:7.1f} {memory}  {how[way]}")


if __name__ == "__main__":
    main()
