"""All that can be proved and measured on a GPU, in one command of at most nine minutes.

    make gpu                                                  on a machine with an NVIDIA GPU
    python workflow_tests/gpu/run.py                          the same without `make env`
    python workflow_tests/gpu/run.py --device cpu --smoke     all of it at toy size, without a GPU

The parts: the tests of this folder; training steps of student and teacher beside stock nnU-Net's;
a full-size CT through both networks beside stock's predictor; the demo's workflow. Each is a
process of its own with a time of its own; one that fails, or whose time is up, stops no other.
What is known is in report.json and report.md after each part, and each part's output in PART.log.
The exit code is 0 if every part went well, 1 if one did not, 2 if none could start.

The trainings get ready (they compile) while tests and demo run, and measure when these have ended,
one after the other, and whatever comes then has the machine for itself; so the demo's seconds are
those beside other work. On a GPU with less than 70 GB the parts come one by one; at toy size, where
no figure means anything, most come at once.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from report import markdown

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BENCHMARKS = HERE.parent / "benchmarks"
ROOM_FOR_ALL = 70e9
"""Bytes of a GPU on which all trainings can be ready at once."""

NEEDED = {
    "torch": "torch",
    "panorgan": "panorgan.inference.predictor",
    "nnunetv2": "nnunetv2",
    "snakemake": "snakemake.cli",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "numba": "numba",
    "matplotlib": "matplotlib",
    "nibabel": "nibabel",
    "pydantic": "pydantic",
    "psutil": "psutil",
    "blosc2": "blosc2",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "isal": "isal",
    "jinja2": "jinja2",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
}
"""Packages that the parts import themselves, and a module of each that has to load."""

LOOK = """
import importlib, importlib.metadata, json, os, platform, sys
missing, broken = [], {}
for package, module in json.loads(sys.argv[1]).items():
    try:
        importlib.metadata.version(package)
    except ModuleNotFoundError:
        missing.append(package)
for package, module in json.loads(sys.argv[1]).items() if not missing else ():
    try:
        importlib.import_module(module)
    except Exception as error:
        broken[package] = (str(error) or type(error).__name__).splitlines()[0]
found = {"missing": missing, "broken": broken, "python": platform.python_version()}
found["cores"] = len(os.sched_getaffinity(0))
if not missing and not broken:
    import torch
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "gpu_memory": properties.total_memory}
print(json.dumps(found))
"""


@dataclass
class Part:
    """A part of the whole.

    Attributes
    ----------
    seconds
        Its time.
    command
        Without the interpreter; ``{json}`` becomes the file of its figures.
    read
        Its figures, from that file.
    """

    name: str
    seconds: float
    command: list[str]
    read: Callable[[Path], dict[str, Any]]
    process: subprocess.Popen | None = field(default=None, repr=False)
    begun: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="everything at toy size")
    parser.add_argument("--out", type=Path, help="folder of the report (results/gpu/DATE-TIME)")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all parts together (8.5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.smoke:
        parser.error("on the CPU only --smoke is possible: the rest would take days")
    started = time.monotonic()
    out = folder_of(arguments.out)
    machine = look(arguments.device)
    out.mkdir(parents=True, exist_ok=True)
    lock = out / f".measuring-{os.getpid()}.lock"
    parts = smoke(arguments.device, lock) if arguments.smoke else full(machine, lock)
    parts = [part for part in parts if part.name in arguments.parts]
    command = " ".join(["python", "workflow_tests/gpu/run.py", *sys.argv[1:]])
    head = {"machine": machine, "command": command, "smoke": arguments.smoke}
    report = Report(out, head, started, (part.name for part in parts))
    first = [[part] for part in parts if part.name in TOGETHER]
    then = [part for part in parts if part.name not in TOGETHER]
    with Runner(out, report, started + 60 * arguments.minutes, lock) as runner:
        if arguments.smoke:
            runner.run([*first, then])
        elif machine["gpu_memory"] >= ROOM_FOR_ALL:
            runner.run(first)
            runner.run([then])
        else:
            for part in parts:
                runner.run([[part]])
    report.write()
    print(f"\n{(out / 'report.md').read_text()}\n{out}: report.json, report.md and a log a part")
    sys.exit(not all(part["status"] == "done" for part in report.parts.values()))


def folder_of(given: Path | None) -> Path:
    """Where the report goes: never over another."""
    if given is None:
        return REPOSITORY / "results/gpu" / time.strftime("%Y-%m-%d-%H%M%S")
    if (given / "report.json").exists():
        stop(f"{given} holds a report already: name another folder with --out")
    return given.resolve()


def look(device: str) -> dict[str, Any]:
    """What this machine is; ends with a line if it lacks what is needed."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(NEEDED)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        stop(f"{sys.executable} cannot tell what it has; the lines above say why")
    machine = json.loads(done.stdout.splitlines()[-1])
    if machine["missing"]:
        stop(
            f"{sys.executable} lacks {', '.join(machine['missing'])}. With a network: make gpu. "
            "Without one: `make wheels` elsewhere, see docs/running.md"
        )
    if broken := machine["broken"]:
        lines = "\n".join(f"{package}: {cause}" for package, cause in broken.items())
        stop(f"{sys.executable} has what is needed, but not all of it can be imported:\n{lines}")
    if device == "cuda" and "card" not in machine:
        stop(
            f"torch {machine['torch']} finds no NVIDIA GPU here (nvidia-smi shows what the driver "
            "sees). Without one, all of this can be tried at toy size: make gpu DEVICE=cpu "
            "SMOKE=1, or python workflow_tests/gpu/run.py --device cpu --smoke"
        )
    del machine["missing"], machine["broken"]
    machine["driver"] = driver()
    machine["processor"] = processor()
    machine["date"] = time.strftime("%Y-%m-%d")
    machine["device"] = device
    return machine


def stop(reason: str) -> None:
    print(reason, file=sys.stderr)
    sys.exit(2)


def driver() -> str | None:
    """Version of the NVIDIA driver, as the kernel tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return next(word for word in text.split() if word.count(".") == 2 and word[0].isdigit())
    except (OSError, StopIteration):
        pass
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        return None


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def environment() -> dict[str, str]:
    """Ours, in which this checkout's code and the tests' modules can be imported."""
    paths = [str(REPOSITORY / "src"), str(HERE.parent), os.environ.get("PYTHONPATH")]
    # What else a machine has for pytest need not go with our version of it.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return {**os.environ, **alone, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


# ---------------------------------------------------------------------------------------------
# The parts

PARTS = ("tests", "student", "teacher", "ct-student", "ct-teacher", "demo")
TOGETHER = ("tests", "demo", "student", "teacher")
UNMEASURED = ("tests", "demo")
"""Beside these nobody measures."""

TEST_FILES = (
    *("test_training.py", "test_steps.py", "test_memory.py", "test_prediction.py"),
    *("test_augmentation.py", "test_jobs.py"),
)
"""What only a GPU can show comes first: time may be short."""


LONG_S = 1500
"""Of a part at toy size, however busy the machine is; `--minutes` ends all of them before."""


def full(machine: dict[str, Any], lock: Path) -> list[Part]:
    """The parts on a GPU."""
    workers, threads = min(12, machine["cores"] - 2), min(8, machine["cores"] // 2)
    common = ["--device", "cuda", "--threads", str(threads)]
    steps = [*common, "--recipe", "full", "--workers", str(workers), "--lock", str(lock)]
    steps += ["--seconds", "1", "--turns", "2", "--augmentations", "5"]
    return [
        tests("cuda", 230),
        demo(230, ["--cores", str(machine["cores"])]),
        training("student", 340, steps),
        training("teacher", 430, steps),
        prediction("student", 130, common),
        prediction("teacher", 90, common),
    ]


def smoke(device: str, lock: Path) -> list[Part]:
    """The same, each as small as can be."""
    common = ["--device", device, "--recipe", "demo", "--threads", "1"]
    steps = [*common, "--workers", "1", "--lock", str(lock), "--settings", "plain", "channels last"]
    steps += ["--seconds", "0.2", "--turns", "1", "--augmentations", "2"]
    scan = [*common, "--shape", "24", "48", "64", "--spacing", "7", "5", "5", "--processes", "1"]
    scan += ["--ways", "panorgan", "stock"]
    return [
        tests(device, LONG_S),
        training("student", LONG_S, steps),
        training("teacher", LONG_S, steps),
        prediction("student", LONG_S, scan),
        prediction("teacher", LONG_S, scan),
        demo(LONG_S, ["--tiny", "--cores", "2"]),
    ]


def tests(device: str, seconds: float) -> Part:
    options = ["-m", "gpu", "--device", device, "-q", "-o", "junit_family=xunit1"]
    options += ["-p", "no:cacheprovider", "--junit-xml", "{json}"]
    files = (str(HERE / name) for name in TEST_FILES)
    return Part("tests", seconds, ["-m", "pytest", *options, *files], read_tests)


def training(network: str, seconds: float, options: list[str]) -> Part:
    command = [str(BENCHMARKS / "train_step.py"), "--network", network, *options]
    return Part(network, seconds, [*command, "--json", "{json}"], read_json)


def prediction(network: str, seconds: float, options: list[str]) -> Part:
    command = [str(BENCHMARKS / "predict.py"), "--network", network, *options]
    return Part(f"ct-{network}", seconds, [*command, "--json", "{json}"], read_json)


def demo(seconds: float, options: list[str]) -> Part:
    return Part(
        "demo", seconds, [str(BENCHMARKS / "demo.py"), *options, "--json", "{json}"], read_json
    )


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def read_tests(path: Path) -> dict[str, Any]:
    """Counts, what failed and why, where the tests were stopped, and the figures they record."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": []}
    found |= {"interrupted": None, "figures": {}}
    cases = list(suite.iter("testcase"))
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            found["failed"][name] = (problem.get("message") or "").splitlines()[:1]
        elif case.find("skipped") is not None:
            found["skipped"].append(name)
        elif case is cases[-1] and int(suite.get("tests")) < len(cases):
            found["interrupted"] = name
        else:
            found["passed"] += 1
        for figure in case.iter("property"):
            found["figures"].setdefault(figure.get("name"), []).append(float(figure.get("value")))
    return found


# ---------------------------------------------------------------------------------------------
# Running them


class Runner:
    """Starts parts and ends them in time, or all of them when this program is ended."""

    def __init__(self, out: Path, report: "Report", deadline: float, lock: Path):
        self.out, self.report, self.deadline, self.lock = out, report, deadline, lock
        self.running: list[Part] = []

    def __enter__(self) -> "Runner":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
        # Of a shell's background process it is ignored, and would be in all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        for part in self.running:
            end_tree(part.process, 0)
            self._figures(part).unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)

    def start(self, part: Part) -> None:
        figures = self._figures(part)
        figures.unlink(missing_ok=True)
        command = [text.format(json=figures) if text == "{json}" else text for text in part.command]
        part.begun = time.monotonic()
        if part.begun >= self.deadline:
            return
        print(f"{part.name} …", flush=True)
        with open(self.out / f"{part.name}.log", "w") as log:
            part.process = subprocess.Popen(
                [sys.executable, "-u", *command],
                cwd=REPOSITORY,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.running.append(part)

    def run(self, lanes: list[list[Part]]) -> None:
        """Run lanes of parts, one after another in each; nobody measures beside `UNMEASURED`."""
        lanes = [lane[:] for lane in lanes if lane]
        with open(self.lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            for lane in lanes:
                self.start(lane[0])
            while lanes:
                for lane in lanes[:]:
                    if (status := self._status(lane[0])) == "running":
                        continue
                    self._close(lane.pop(0), status)
                    if lane:
                        self.start(lane[0])
                    else:
                        lanes.remove(lane)
                if not any(part.name in UNMEASURED for lane in lanes for part in lane):
                    fcntl.flock(file, fcntl.LOCK_UN)
                time.sleep(0.2)

    def _status(self, part: Part) -> str:
        if part.process is None:
            return "not begun, as no time was left"
        if (code := part.process.poll()) is not None:
            return "done" if code == 0 else f"failed (exit code {code})"
        end = min(part.begun + part.seconds, self.deadline)
        if time.monotonic() < end:
            return "running"
        end_tree(part.process)
        return "stopped, as its time was up"

    def _close(self, part: Part, status: str) -> None:
        figures: dict[str, Any] = {}
        try:
            figures = part.read(self._figures(part))
        except (OSError, ValueError, ElementTree.ParseError):
            if status == "done":
                status = "failed (it left no figures)"
        self._figures(part).unlink(missing_ok=True)
        if part in self.running:
            self.running.remove(part)
        seconds = time.monotonic() - part.begun
        self.report.add(part.name, {"status": status, "seconds": round(seconds, 1), **figures})
        print(f"{part.name}: {status}, {seconds:.0f} s", flush=True)

    def _figures(self, part: Part) -> Path:
        return self.out / f".{part.name}.figures"


def end_tree(process: subprocess.Popen, patience_s: float = 10) -> None:
    """End a process and all that came of it, stopped ones and those of other sessions too."""
    import psutil

    try:
        whole = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        whole = []
    process.send_signal(signal.SIGINT)  # so tests still tell what they have found
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in whole:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


# ---------------------------------------------------------------------------------------------
# The report


class Report:
    """What is known so far, in both files after each part."""

    def __init__(self, out: Path, head: Mapping[str, Any], started: float, names: Iterable[str]):
        self.out, self.head, self.started = out, head, started
        self.parts: dict[str, dict[str, Any]] = {
            name: {"status": "not begun", "seconds": 0.0} for name in names
        }

    def add(self, name: str, figures: dict[str, Any]) -> None:
        self.parts[name] = figures
        self.write()

    def write(self) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        content = {**self.head, "seconds": seconds, "parts": self.parts}
        for name, text in {
            "report.json": json.dumps(content, indent=1),
            "report.md": markdown(content),
        }.items():
            temporary = self.out / f".{name}.tmp"
            temporary.write_text(text)
            temporary.replace(self.out / name)


if __name__ == "__main__":
    main()
