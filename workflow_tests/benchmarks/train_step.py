"""Training steps of stock nnU-Net 2 and ours: same plan, batch, preprocessed data and device.

The ways, each a process of its own that loads, augments and updates:

stock    nnUNetTrainer as it comes: its loaders with nnUNet_n_proc_DA = `--workers`, its own
         augmentation, SGD, and on a GPU fp16 and torch.compile. The student is its PlainConvUNet of
         the same plan, whose last decoder stage has a 1x3x3 kernel where ours has 3x3x3; the
         teacher is our network in its trainer.
workers  ours, augmented where it is loaded, computed plainly
device   ours, augmented in batches where the network is, once for each of `--settings`: computed
         plainly, in channels-last memory, compiled, or both

The setting whose steps are fastest by over 3 % is then also measured with `workers`. Ours computes
in the precision that `auto` picks (or `--precision`). All get ready at the same time; then they
take turns, and whoever waits is stopped with its loaders, so that nobody makes batches ahead
meanwhile; what was made ahead in a turn before is used up before the clock starts. Medians over
the turns: steps a second, the share of the time in which the processor works (on a GPU: its
kernels' time in one more, profiled turn; on a CPU: time outside of waiting), the share spent
waiting for data; and peak memory, beside what `panorgan describe --recipe` says of it. Then what
augmenting one batch takes alone, on the CPU and in batches on the device.
"""

import argparse
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from _scans import write_scan

from panorgan.config import Config, load_config
from panorgan.labels import load_labels
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

STOCK, WORKERS, DEVICE = "stock", "workers", "device"
PLAIN = "plain"
SETTINGS = (PLAIN, "channels last", "compiled", "channels last and compiled")
DATASET = "Dataset001_panorgan"
INTENSITY = {"mean": 80.0, "median": 85.0, "std": 60.0, "min": -1000.0, "max": 1500.0} | {
    "percentile_00_5": -100.0,
    "percentile_99_5": 240.0,
}
PHANTOM = {
    "full": {"shape": (48, 320, 420), "spacing_mm": (5.0, 0.85, 0.85), "coarse": (1, 2, 2)},
    "demo": {"shape": (28, 56, 80), "spacing_mm": (6.0, 4.0, 4.0), "coarse": (1, 1, 1)},
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
    """Synthetic scans of this recipe's size."""
    for number in range(CASES):
        yield write_scan(folder / f"case_{number}", number, **PHANTOM[arguments.recipe])


def stock_steps(folder: Path, device) -> Any:
    """Loader and step of nnU-Net's own trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import panorgan.nnunet  # stands in for what nnU-Net imports and nobody needs  # noqa: F401
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


def our_steps(folder: Path, device, augment_on: str, setting: str, precision: str) -> Any:
    """Loader and step of ours."""
    from panorgan.nnunet.batches import in_order
    from panorgan.nnunet.devices import resolve_precision
    from panorgan.nnunet.trainer import Setting, make_trainer

    base = folder / DATASET
    plan = json.loads((base / "plans.json").read_text())
    trainer = make_trainer(plan, json.loads((base / "dataset.json").read_text()), device, folder)
    trainer.initialize(resolve_precision(precision, device), augment_on)
    place = base / configuration_of(plan)[1]["data_identifier"]
    cases = {path.stem: place for path in place.glob("*.pkl")}
    batches = trainer.training_batches(cases, 0)
    trainer.use(Setting("channels last" in setting, "compiled" in setting))
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
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody would wake it any more
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nnU-Net talks
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    if way == STOCK:
        loader, step, how = stock_steps(folder, device)
    else:
        place, _, setting = way.partition(", ")
        loader, step, how = our_steps(folder, device, place, setting, arguments.precision)
    # Others get ready on the same GPU, so cuDNN must not choose its algorithms by timing yet; it
    # keeps a choice for as long as the second flag stays.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    for _ in range(3):
        step(next(loader))
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    print(json.dumps({"how": how}), file=answers)
    for line in sys.stdin:
        figures = turn(loader, step, arguments, profiled=line.strip() == "profile")
        if device.type == "cuda":
            figures["gpu_mb"] = torch.cuda.max_memory_reserved() / 2**20
        figures["mb"] = peak_mb()
        print(json.dumps(figures), file=answers)


def turn(loader: Iterator, step: Any, arguments, *, profiled: bool) -> dict[str, float]:
    """Steps for some seconds.

    Every step waits for a loss, ours for that before it: the clock need not wait for the GPU. A
    turn of ours therefore begins with the end of the step before it, and leaves its last to the
    next turn.
    """
    import torch

    if arguments.device == "cuda":  # what cuDNN tried in the first turn is not what a step takes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2 * arguments.workers):  # what the loaders have made ahead
        step(next(loader))
    if not profiled:
        return timed(loader, step, arguments.seconds)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        figures = timed(loader, step, min(2.0, arguments.seconds))
    busy = kernel_seconds(seen) / figures["seconds"]
    return figures | ({"busy": busy} if busy else {})  # where the driver lets nobody look: none


def timed(loader: Iterator, step: Any, seconds: float) -> dict[str, float]:
    waited, count, start = 0.0, 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        step(batch)
        count += 1
    return {"seconds": time.perf_counter() - start, "steps": count, "waited": waited}


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
    """A way's process, stopped with all its loaders except in its turns.

    Attributes
    ----------
    how : str
        Precision and setting; empty until `ready`.
    """

    def __init__(self, way: str, folder: Path, command: list[str], workers: int):
        self.way, self.how = way, ""
        name = way.replace(", ", "-").replace(" ", "-")
        self.log = folder / f"{name}.log"
        variables = {
            "nnUNet_preprocessed": str(folder),
            "nnUNet_raw": str(folder),
            "nnUNet_results": str(folder / f"results-{name}"),
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

    def ready(self) -> bool:
        """Wait until it has made some steps; False, with its last words, if it ended instead."""
        answer = self._answer()
        self.how = answer.get("how", "")
        return bool(self.how)

    def turn(self, kind: str = "turn") -> dict[str, float]:
        os.killpg(self.process.pid, signal.SIGCONT)
        print(kind, file=self.process.stdin, flush=True)
        return self._answer() or sys.exit(f"{self.way} ended in its turn")

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            print(f"{self.way}:\n{self.log.read_text()[-3000:]}", file=sys.stderr)
            return {}
        os.killpg(self.process.pid, signal.SIGSTOP)
        return json.loads(line)

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Race:
    """Ways that take turns."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        self.folder, self.arguments = folder, arguments
        self.processes: dict[str, Process] = {}
        self.turns: dict[str, list[dict[str, float]]] = {}

    def start(self, *ways: str) -> None:
        """Let ways get ready, all at the same time; what cannot is left out."""
        arguments = self.arguments
        begun = [Process(way, self.folder, sys.argv[1:], arguments.workers) for way in ways]
        self.processes |= {process.way: process for process in begun}
        for process in begun:
            if process.ready():
                self.turns[process.way] = []
            else:
                self.processes.pop(process.way).end()

    def run(self, *ways: str) -> None:
        """A round to warm up, then all turns, the ways one after another in each."""
        ways = tuple(way for way in ways if way in self.processes)
        for number in range(self.arguments.turns + 1):
            for way in ways:
                figures = self.processes[way].turn()
                if number:
                    self.turns[way].append(figures)
        if self.arguments.device == "cuda":
            for way in ways:
                self.turns[way][-1]["busy"] = self.processes[way].turn("profile").get("busy")

    def pace(self, way: str) -> float:
        """Median steps a second; 0 if it could not be measured."""
        return median(turn["steps"] / turn["seconds"] for turn in self.turns.get(way) or [NO_TURN])

    def figures(self) -> dict[str, dict[str, Any]]:
        """What is said of each way; a ratio to stock is the median over pairs of turns."""
        return {way: self._figures(way, found) for way, found in self.turns.items() if found}

    def _figures(self, way: str, found: list[dict[str, float]]) -> dict[str, Any]:
        # The turns of a way that came later were beside stock's last ones.
        stock = self.turns.get(STOCK, [])[-len(found) :]
        pace, against = ([turn["steps"] / turn["seconds"] for turn in t] for t in (found, stock))
        ratios = [ours / theirs for ours, theirs in zip(pace, against, strict=False)]
        wait = median(turn["waited"] / turn["seconds"] for turn in found)
        busy = found[-1].get("busy") if self.arguments.device == "cuda" else 1 - wait
        return {
            "how": self.processes[way].how,
            "steps_per_s": self.pace(way),
            "ratio": median(ratios) if ratios else None,
            "busy": busy,
            "waiting": wait,
            "peak_mb": found[-1]["mb"],
            "peak_gpu_mb": found[-1].get("gpu_mb"),
        }

    def end(self) -> None:
        for process in self.processes.values():
            process.end()


NO_TURN = {"steps": 0, "seconds": 1.0}


def race(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures as they come: all ways and the setting that was chosen, then that by the loaders."""
    from panorgan.nnunet.speed import GAIN

    runners = Race(folder, arguments)
    first = [STOCK, f"{WORKERS}, {PLAIN}", *(f"{DEVICE}, {s}" for s in arguments.settings)]
    try:
        runners.start(*first)
        with alone(arguments.lock):
            runners.run(*first)
            paces = {
                setting: runners.pace(f"{DEVICE}, {setting}") for setting in arguments.settings
            }
            chosen = max(paces, key=paces.__getitem__)
            if paces[chosen] * GAIN < paces.get(PLAIN, 0):
                chosen = PLAIN
            yield {"chosen": chosen, "ways": runners.figures()}
            if chosen != PLAIN:
                runners.start(f"{WORKERS}, {chosen}")
                runners.run(STOCK, f"{WORKERS}, {chosen}")
                yield {"ways": runners.figures()}
            yield {"augmenting": augmenting(folder, arguments)}
    finally:
        runners.end()


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Measure while nobody else does who locks the same file."""
    if lock is None:
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def augmenting(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean milliseconds of augmenting a batch, both ways."""
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
    times: dict[str, list[float]] = {"each_on_the_cpu_ms": [], "batched_on_the_device_ms": []}
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
            for name, value in zip(
                times, (middle - start, time.perf_counter() - middle), strict=True
            ):
                times[name].append(1000 * value)
    return {name: sum(values) / len(values) for name, values in times.items()}


def traced_mb(folder: Path, precision: str) -> float:
    """What `panorgan describe --recipe` says that a step needs, with its allowance."""
    from panorgan.nnunet.estimate import training_memory

    base = folder / DATASET
    plan, dataset_json = (
        json.loads((base / f"{n}.json").read_text()) for n in ("plans", "dataset")
    )
    return training_memory(plan, dataset_json, precision).needed / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("teacher", "student"), default="student")
    parser.add_argument("--recipe", choices=("full", "demo"), default="demo")
    parser.add_argument("--patch", type=int, nargs="+", help="instead of the recipe's")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--data", type=Path, help="folder of X_0000.nii.gz with labels X.nii.gz")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="all on a GPU, else plain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that load")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--augmentations", type=int, default=60, help="batches for their times")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--lock", type=Path, help="measure only while this file is not locked")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings is None:
        arguments.settings = list(SETTINGS if arguments.device == "cuda" else [PLAIN])
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]), arguments)
        return

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    recipe = recipe_of(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments)
        figures: dict[str, Any] = {
            "network": arguments.network,
            "patch_size": recipe["patch_size"],
            "batch_size": recipe["batch_size"],
            "workers": arguments.workers,
        }
        for found in race(folder, arguments):
            figures |= found
            ours = [f["how"].split(", ")[0] for way, f in figures["ways"].items() if way != STOCK]
            if ours and "traced_mb" not in figures:
                figures["traced_mb"] = traced_mb(folder, ours[0])
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))
    report(figures, arguments.device)


def report(figures: Mapping[str, Any], device: str) -> None:
    size = " x ".join(map(str, figures["patch_size"]))
    print(f"{figures['network']}, {figures['batch_size']} patches of {size}, {device}")
    columns = ("steps/s", "ratio", "busy %", "wait %", "MB", "GPU MB")
    print(f"{'':35}" + "".join(f"{column:>9}" for column in columns))
    for way, found in figures["ways"].items():
        values = (
            *(found["steps_per_s"], found["ratio"], _percent(found["busy"])),
            *(_percent(found["waiting"]), found["peak_mb"], found["peak_gpu_mb"]),
        )
        digits = (3, 2, 1, 1, 0, 0)
        cells = (
            f"{'-':>9}" if value is None else f"{value:9.{n}f}"
            for value, n in zip(values, digits, strict=True)
        )
        print(f"{way:35}{''.join(cells)}  {found['how']}")
    print(f"chosen: {figures['chosen']}")
    each, batched = figures["augmenting"].values()
    print(f"augmenting a batch: {each:.1f} ms each on the CPU, {batched:.1f} ms on the device")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


if __name__ == "__main__":
    main()
