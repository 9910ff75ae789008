"""Training steps of stock nnU-Net 2 and ours: same plan, batch, preprocessed data and device.

The ways, each a process of its own that loads, augments and updates:

stock    nnUNetTrainer as it comes: its loaders with nnUNet_n_proc_DA = `--workers`, its own
         augmentation, SGD, and on a GPU fp16 and torch.compile. The student is its PlainConvUNet of
         the same plan, whose last decoder stage has a 1x3x3 kernel where ours has 3x3x3; the
         teacher is our network in its trainer.
workers  ours, augmented where it is loaded
device   ours, augmented in batches where the network is

Ours is measured in each of `--settings`: computed plainly, in channels-last memory, compiled, or
both, in the precision that `auto` picks (or `--precision`). All get ready at the same time; then
they take turns, and whoever waits is stopped with its loaders, so that nobody makes batches ahead
meanwhile; what was made ahead before is used up before the clock starts. Medians over the rounds:
steps a second; the ratio to stock's of the same round; the share spent waiting for data; and the
share of the time in which the processor works (on a GPU: its kernels' time a step, of one more,
profiled turn, times the steps a second; on a CPU: time outside of waiting). Peak memory stands
beside what `panorgan describe --recipe` says of it. The setting that is chosen has the fastest
steps with `device`, if by over 3 %. Last, what augmenting one batch takes: each patch on one thread
of the CPU, as a loader does, and in batches on the device.
"""

import argparse
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from _scans import write_scan

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config, load_config
from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

STOCK, WORKERS, DEVICE = "stock", "workers", "device"
PLAIN = "plain"
SETTINGS = (PLAIN, "channels last", "compiled", "channels last and compiled")
DATASET = "Dataset001_panorgan"
OURS = "ours"
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
    """Plan and preprocessed cases, for each trainer laid out as it wants them."""
    from nnunetv2.training.dataloading.nnunet_dataset import (
        comp_blosc2_params,
        nnUNetDatasetBlosc2,
    )

    from panorgan.io.volumes import read_image, read_label
    from panorgan.nnunet.case_file import save
    from panorgan.nnunet.preprocess import preprocess_image

    labels = load_labels()
    teacher = arguments.network == "teacher"
    names = [labels.tumour_name] if teacher else labels.names
    shape = PHANTOM[arguments.recipe]
    plan = make_plan(recipe_of(arguments), names, INTENSITY, shape["shape"], shape["spacing_mm"])
    base = folder / DATASET
    place = base / configuration_of(plan)[1]["data_identifier"]
    for folder_of in (place, base / OURS):
        folder_of.mkdir(parents=True)
    (base / "plans.json").write_text(json.dumps(plan))
    (base / "dataset.json").write_text(json.dumps(make_dataset_json(names, ignore=False)))
    for number, (image, label) in enumerate(real(arguments) or phantom(folder, arguments)):
        array = read_label(label).array
        array = (array == labels.tumour.value).astype("uint8") if teacher else array
        done = preprocess_image(read_image(image), plan, array)
        save(base / OURS, f"case_{number}", done)
        blocks, chunks = comp_blosc2_params(done.data.shape, done.patch_size, done.data.itemsize)
        nnUNetDatasetBlosc2.save_case(
            done.data,
            done.seg,
            done.properties,
            str(place / f"case_{number}"),
            chunks=chunks,
            blocks=blocks,
        )


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


def stock_steps(folder: Path, device) -> tuple[Iterator, dict[str, Any], str]:
    """Loader and step of nnU-Net's own trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import panorgan.nnunet  # stands in for what nnU-Net imports and nobody needs  # noqa: F401
    from panorgan.nnunet.models.stock import plain_unet

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
    return loader, {PLAIN: trainer.train_step}, f"{precision}, {compiled}"


Step = Callable[[Any], None]


def our_steps(
    folder: Path, device, augment_on: str, settings: Sequence[str], precision: str
) -> tuple[Iterator, dict[str, Step], str]:
    """Loader and step of ours, one a setting, each with a network of its own."""
    from panorgan.nnunet.devices import resolve_precision
    from panorgan.nnunet.training.batches import in_order
    from panorgan.nnunet.training.trainer import Setting, make_trainer

    base = folder / DATASET
    plan = json.loads((base / "plans.json").read_text())
    dataset_json = json.loads((base / "dataset.json").read_text())
    cases = {path.stem: path.parent for path in (base / OURS).glob("*.b2nd")}

    def step_of(trainer: Any) -> Step:
        under_way = []

        def step(batch: Any) -> None:
            """As the training does: a step's loss is waited for once the next is under way."""
            under_way.append(trainer.train_step(batch))
            if len(under_way) > 1:
                float(under_way.pop(0))

        return step

    steps: dict[str, Step] = {}
    for setting in settings:
        trainer = make_trainer(plan, dataset_json, device, folder)
        trainer.initialize(resolve_precision(precision, device), augment_on)
        batches = trainer.training_batches(cases, 0)
        trainer.use(Setting("channels last" in setting, "compiled" in setting))
        trainer.network.train()
        steps[setting] = step_of(trainer)
    workers, pin = trainer.training["workers"], device.type == "cuda"
    loader = in_order(batches, 0, 10**6, workers=workers, pin_memory=pin)
    return loader, steps, trainer.precision


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> None:
    """One way in this process: for each line of the input a turn, and its figures in a line."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody would wake it any more
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nnU-Net talks
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    # Others get ready on the same GPU, so cuDNN must not choose its algorithms by timing yet; it
    # keeps a choice for as long as the second flag stays.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if way == STOCK:
        loader, steps, how = stock_steps(folder, device)
        steps = working(loader, steps)
        if not steps:
            os.environ["nnUNet_compile"] = "f"  # noqa: SIM112
            loader, steps, how = stock_steps(folder, device)
            steps = working(loader, steps)
    else:
        loader, steps, how = our_steps(folder, device, way, arguments.settings, arguments.precision)
        steps = working(loader, steps)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    print(json.dumps({"how": how, "settings": list(steps)}), file=answers)
    for line in sys.stdin:
        setting, profiled = json.loads(line)
        figures = turn(loader, steps[setting], arguments, profiled=profiled)
        figures["mb"] = peak_mb()
        print(json.dumps(figures), file=answers)


def working(loader: Iterator, steps: Mapping[str, Step]) -> dict[str, Step]:
    """The settings in which three steps can be made: a compiler may fail in many ways."""
    found = {}
    for setting, step in steps.items():
        try:
            for _ in range(3):
                step(next(loader))
        except Exception:
            print(f"{setting}: left out", file=sys.stderr)
            traceback.print_exc()
        else:
            found[setting] = step
    return found


def turn(loader: Iterator, step: Step, arguments, *, profiled: bool) -> dict[str, float]:
    """Steps for some seconds.

    Every step waits for a loss, ours for that before it: the clock need not wait for the GPU. A
    turn of ours therefore begins with the end of the step before it, and leaves its last to the
    next turn.
    """
    import torch

    on_gpu = arguments.device == "cuda"
    for _ in range(2 * arguments.workers):  # what the loaders have made ahead
        step(next(loader))
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    if profiled:
        return profile(loader, step)
    figures = timed(loader, step, arguments.seconds)
    if on_gpu:
        figures["gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return figures


def timed(loader: Iterator, step: Step, seconds: float) -> dict[str, float]:
    waited, count, start = 0.0, 0, time.perf_counter()
    while count < 2 or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        step(batch)
        count += 1
    return {"seconds": time.perf_counter() - start, "steps": count, "waited": waited}


def profile(loader: Iterator, step: Step) -> dict[str, float]:
    """Seconds of the GPU's kernels and copies a step; nothing where the driver lets nobody look."""
    import torch

    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            figures = timed(loader, step, 0.3)
            torch.cuda.synchronize()
        spans = sorted(
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in seen.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA
            and not event.is_user_annotation()
        )
    except Exception as error:
        print(f"no profile: {error}", file=sys.stderr)
        return {}
    total = until = 0
    for start, end in spans:
        total += max(0, end - max(start, until))
        until = max(until, end)
    return {"kernels": total / 1e9 / figures["steps"]} if total else {}


def peak_mb() -> float:
    """Peak memory of this process alone; what getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Process:
    """A way's process, stopped with all its loaders except in its turns.

    Attributes
    ----------
    how : str
        Its precision, of stock also whether it is compiled.
    settings : list of str
        Those that work.
    """

    def __init__(self, way: str, folder: Path, command: list[str], workers: int):
        self.way, self.how, self.settings = way, "", []
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
                process_group=0,
                env={**os.environ, **variables},
            )

    def ready(self, deadline: float) -> bool:
        """Wait until it has made some steps, at most until a moment of the monotonic clock."""
        if answer := self._answer(deadline):
            self.how, self.settings = answer["how"], answer["settings"]
        return bool(self.settings)

    def turn(self, setting: str, profiled: bool = False) -> dict[str, float] | None:
        """Its figures, or None if it ended instead."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps([setting, profiled]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._answer(time.monotonic() + PATIENCE_S)

    def _answer(self, deadline: float) -> dict[str, Any] | None:
        """The next line; loaders may hold the pipe open when the process itself is gone."""
        pipe, line = self.process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            if select.select([pipe], [], [], 0.5)[0]:
                if not (part := os.read(pipe, 1 << 16)):
                    break
                line += part
            elif self.process.poll() is not None or time.monotonic() > deadline:
                break
        if not line.endswith(b"\n"):
            print(f"{self.way}: no answer\n{self.log.read_text()[-3000:]}", file=sys.stderr)
            return None
        os.killpg(self.process.pid, signal.SIGSTOP)
        return json.loads(line)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


PATIENCE_S = 300.0
"""How long getting ready, or a turn, may take: a first turn searches cuDNN's algorithms."""


class Race:
    """Ways that take turns.

    Attributes
    ----------
    rounds : list of dict
        Of each round the figures by way and setting, without those of what has ended.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        self.arguments = arguments
        self.processes = {
            way: Process(way, folder, sys.argv[1:], arguments.workers)
            for way in (STOCK, WORKERS, DEVICE)
        }
        self.how: dict[str, str] = {}
        self.rounds: list[dict[tuple[str, str], dict[str, float]]] = []
        self.kernels: dict[tuple[str, str], float] = {}

    def ready(self) -> None:
        """Wait for all of them; what cannot be got ready is left out."""
        deadline = time.monotonic() + PATIENCE_S
        for way, process in list(self.processes.items()):
            if process.ready(deadline):
                self.how[way] = process.how
            else:
                self.processes.pop(way).end()

    def round(self) -> None:
        """A turn of each."""
        found = {}
        for way, process in list(self.processes.items()):
            for setting in process.settings:
                if figures := self._turn(way, setting):
                    found[way, setting] = figures
        self.rounds.append(found)

    def profile(self, chosen: str) -> None:
        """How busy the GPU is, of stock and of ours as chosen."""
        for way in list(self.processes):
            for setting in dict.fromkeys((PLAIN, chosen)):
                if setting in self.processes[way].settings:
                    found = self._turn(way, setting, profiled=True) or {}
                    if "kernels" in found:
                        self.kernels[way, setting] = found["kernels"]
                if way not in self.processes:
                    break

    def _turn(self, way: str, setting: str, profiled: bool = False) -> dict[str, float] | None:
        if way not in self.processes:
            return None
        figures = self.processes[way].turn(setting, profiled)
        if figures is None:
            self.processes.pop(way).end()
        return figures

    def pace(self, way: str, setting: str) -> float:
        """Median steps a second after the first round, which warms up; 0 without any."""
        return median(self._paces(way, setting) or [0.0])

    def _paces(self, way: str, setting: str) -> list[float]:
        turns = (one[way, setting] for one in self.rounds[1:] if (way, setting) in one)
        return [turn["steps"] / turn["seconds"] for turn in turns]

    def chosen(self) -> str:
        """The setting with the fastest steps on the device; plain unless the gain is clear."""
        from panorgan.nnunet.training.speed import GAIN

        paces = {setting: self.pace(DEVICE, setting) for setting in self.arguments.settings}
        best = max(paces, key=paces.__getitem__)
        return best if paces[best] * GAIN > paces.get(PLAIN, 0.0) else PLAIN

    def figures(self) -> dict[str, dict[str, Any]]:
        """What is said of each way and setting."""
        keys = dict.fromkeys(key for one in self.rounds[1:] for key in one)
        return {_name(*key): self._figures(*key) for key in keys}

    def _figures(self, way: str, setting: str) -> dict[str, Any]:
        key, stock = (way, setting), (STOCK, PLAIN)
        turns = [one[key] for one in self.rounds[1:] if key in one]
        ratios = [
            (one[key]["steps"] / one[key]["seconds"])
            / (one[stock]["steps"] / one[stock]["seconds"])
            for one in self.rounds[1:]
            if key in one and stock in one
        ]
        pace = self.pace(way, setting)
        waiting = median(turn["waited"] / turn["seconds"] for turn in turns)
        busy = 1 - waiting
        if self.arguments.device == "cuda":
            busy = self.kernels[key] * pace if key in self.kernels else None
        return {
            "how": self.how[way],
            "steps_per_s": pace,
            "ratio": median(ratios) if ratios else None,
            "busy": busy,
            "waiting": waiting,
            "peak_mb": turns[-1]["mb"],
            "peak_gpu_mb": turns[-1].get("gpu_mb"),
        }

    def end(self) -> None:
        for process in self.processes.values():
            process.end()


def _name(way: str, setting: str) -> str:
    return way if way == STOCK else f"{way}, {setting}"


def race(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures as they come: after each round, with the profile, and of augmenting."""
    runners = Race(folder, arguments)
    try:
        with sharing(arguments.lock):
            runners.ready()
        with alone(arguments.lock):
            runners.round()
            for _ in range(arguments.turns):
                runners.round()
                yield {"ways": runners.figures(), "chosen": runners.chosen()}
            if arguments.device == "cuda":
                runners.profile(runners.chosen())
                yield {"ways": runners.figures()}
            yield {"augmenting": augmenting(folder, arguments)}
    finally:
        runners.end()


@contextmanager
def sharing(lock: Path | None) -> Iterator[None]:
    """Get ready while nobody measures who locks the same file."""
    with locked(lock, fcntl.LOCK_SH):
        yield


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Measure while nobody else measures or gets ready who locks the same file."""
    with locked(lock, fcntl.LOCK_EX):
        yield


@contextmanager
def locked(lock: Path | None, how: int) -> Iterator[None]:
    if lock is None:
        yield
        return
    with open(lock, "a") as file:
        fcntl.flock(file, how)
        yield


def augmenting(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean milliseconds of augmenting a batch, on one thread or on the device."""
    import torch

    from panorgan.nnunet.training.augmentation import training_transforms
    from panorgan.nnunet.training.batches import own_random_numbers
    from panorgan.nnunet.training.trainer import make_trainer

    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    base = folder / DATASET
    plan = json.loads((base / "plans.json").read_text())
    dataset_json = json.loads((base / "dataset.json").read_text())
    with redirect_stdout(sys.stderr):
        trainer = make_trainer(plan, dataset_json, device, folder)
    trainer.initialize("fp32", "device")
    cases = {path.stem: path.parent for path in (base / OURS).glob("*.b2nd")}
    batches = trainer.training_batches(cases, 0)
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
    from panorgan.nnunet.training.memory import training_memory

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
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))
        ours = [found["how"] for way, found in figures["ways"].items() if way != STOCK]
        if ours:
            figures["traced_mb"] = traced_mb(folder, ours[0])
    report(figures, arguments.device)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


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
