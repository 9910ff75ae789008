"""All that can be proved and measured on a GPU, in one command of at most nine minutes.

    make gpu                                                  on a machine with an NVIDIA GPU
    python workflow_tests/gpu/run.py                          the same without `make env`
    python workflow_tests/gpu/run.py --device cpu --smoke     all of it at toy size, without a GPU

The parts: the tests of this folder; training steps of student and teacher beside stock nnU-Net's;
a full-size CT through both networks beside stock's predictor; the demo's workflow. Each is a
process of its own with a time of its own; one that fails, or whose time is up, stops no other.
What is known is in OUT/report.json and OUT/report.md after each part, and each part's output in
OUT/PART.log. The exit code is 0 if every part went well, 1 if one did not, 2 if none could start.

The trainings get ready (they compile) while the tests run, and measure when these have ended, one
after the other, and whatever comes then has the machine for itself. On a GPU with less than 70 GB
the parts come one by one; at toy size, where no figure means anything, most come at once.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BENCHMARKS = HERE.parent / "benchmarks"
ROOM_FOR_ALL = 70e9
"""Bytes of a GPU on which all trainings can be ready at once."""

NEEDED = (
    *("torch", "panorgan", "nnunetv2", "snakemake", "pytest", "hypothesis", "numpy", "scipy"),
    *("pandas", "numba", "matplotlib", "nibabel", "pydantic", "psutil", "blosc2", "scikit-image"),
    *("scikit-learn", "connected-components-3d", "isal", "jinja2", "pyyaml", "safetensors"),
)
"""Packages that the parts import themselves."""

LOOK = """
import importlib.metadata, json, os, platform, sys
def is_missing(name):
    try:
        importlib.metadata.version(name)
    except ModuleNotFoundError:
        return True
found = {"missing": [name for name in sys.argv[1:] if is_missing(name)]}
found |= {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
if "torch" not in found["missing"]:
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
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu"), help="folder of the report"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="only these")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.smoke:
        parser.error("on the CPU only --smoke is possible: the rest would take days")
    started = time.monotonic()
    machine = look(arguments.device)
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lock = out / "measuring.lock"
    parts = smoke(arguments.device, lock) if arguments.smoke else full(machine, lock)
    if arguments.parts:
        if unknown := {*arguments.parts} - {part.name for part in parts}:
            known = " ".join(part.name for part in parts)
            parser.error(f"no such part: {', '.join(unknown)}; there are {known}")
        parts = [part for part in parts if part.name in arguments.parts]
    report = Report(out, machine, arguments.smoke, started, [part.name for part in parts])
    runner = Runner(out, report, started + 60 * arguments.minutes)
    first = [[part] for part in parts if part.name in TOGETHER]
    then = [part for part in parts if part.name not in TOGETHER]
    if arguments.smoke:
        runner.run([*first, then], lock)
    elif machine["gpu_memory"] >= ROOM_FOR_ALL:
        runner.run(first, lock)
        runner.run([then], lock)
    else:
        runner.run([parts], lock)
    lock.unlink(missing_ok=True)
    report.write()
    print(f"\n{(out / 'report.md').read_text()}\n{out}: report.json, report.md and a log a part")
    sys.exit(not all(part["status"] == "done" for part in report.parts.values()))


def look(device: str) -> dict[str, Any]:
    """What this machine is; ends with a line if it lacks what is needed."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *NEEDED],
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
    if device == "cuda" and "card" not in machine:
        stop(
            f"torch {machine['torch']} finds no NVIDIA GPU here (nvidia-smi shows what the driver "
            "sees). Without one, all of this can be tried at toy size: make gpu DEVICE=cpu SMOKE=1"
        )
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
    own = [str(REPOSITORY / "src"), str(HERE.parent)]
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*own, *([before] if before else [])])}


# ---------------------------------------------------------------------------------------------
# The parts

TOGETHER = ("tests", "student", "teacher")


def full(machine: dict[str, Any], lock: Path) -> list[Part]:
    """The parts on a GPU."""
    workers, threads = min(12, machine["cores"] - 2), min(8, machine["cores"] // 2)
    common = ["--device", "cuda", "--threads", str(threads)]
    steps = [*common, "--recipe", "full", "--workers", str(workers), "--lock", str(lock)]
    steps += ["--seconds", "1.5", "--turns", "2", "--augmentations", "20"]
    return [
        tests("cuda", 180),
        training("student", 330, steps),
        training("teacher", 360, steps),
        prediction("student", 100, common),
        prediction("teacher", 60, common),
        demo(200, ["--cores", str(machine["cores"])]),
    ]


def smoke(device: str, lock: Path) -> list[Part]:
    """The same, each as small as can be."""
    common = ["--device", device, "--recipe", "demo", "--threads", "1"]
    steps = [*common, "--workers", "1", "--lock", str(lock), "--settings", "plain", "channels last"]
    steps += ["--seconds", "0.3", "--turns", "1", "--augmentations", "2"]
    scan = [*common, "--shape", "24", "48", "64", "--spacing", "7", "5", "5", "--processes", "1"]
    return [
        tests(device, 400),
        training("student", 400, steps),
        training("teacher", 400, steps),
        prediction("student", 200, scan),
        prediction("teacher", 200, scan),
        demo(400, ["--tiny", "--cores", "2"]),
    ]


def tests(device: str, seconds: float) -> Part:
    options = ["-m", "gpu", "--device", device, "-q", "-o", "junit_family=xunit1"]
    options += ["-p", "no:cacheprovider", "--junit-xml", "{json}"]
    return Part("tests", seconds, ["-m", "pytest", *options, str(HERE)], read_tests)


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
    """Counts, what failed and why, and the figures that tests record."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": [], "figures": {}}
    for case in suite.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            found["failed"][name] = (problem.get("message") or "").splitlines()[:1]
        elif case.find("skipped") is not None:
            found["skipped"].append(name)
        else:
            found["passed"] += 1
        for figure in case.iter("property"):
            found["figures"].setdefault(name, {})[figure.get("name")] = float(figure.get("value"))
    return found


# ---------------------------------------------------------------------------------------------
# Running them


class Runner:
    """Starts parts and ends them in time."""

    def __init__(self, out: Path, report: "Report", deadline: float):
        self.out, self.report, self.deadline = out, report, deadline

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

    def run(self, lanes: list[list[Part]], lock: Path) -> None:
        """Run lanes of parts, one after another in each; nobody measures while the tests run."""
        lanes = [lane[:] for lane in lanes if lane]
        with open(lock, "w") as file:
            if any(lane[0].name == "tests" for lane in lanes):
                fcntl.flock(file, fcntl.LOCK_EX)
            for lane in lanes:
                self.start(lane[0])
            while lanes:
                for lane in lanes[:]:
                    if (status := self._status(lane[0])) == "running":
                        continue
                    self._close(lane[0], status)
                    if lane.pop(0).name == "tests":
                        fcntl.flock(file, fcntl.LOCK_UN)
                    if lane:
                        self.start(lane[0])
                    else:
                        lanes.remove(lane)
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
        return f"stopped after {time.monotonic() - part.begun:.0f} s, as its time was up"

    def _close(self, part: Part, status: str) -> None:
        figures: dict[str, Any] = {}
        try:
            figures = part.read(self._figures(part))
        except (OSError, ValueError, ElementTree.ParseError):
            if status == "done":
                status = "failed (it left no figures)"
        self._figures(part).unlink(missing_ok=True)
        seconds = time.monotonic() - part.begun
        self.report.add(part.name, {"status": status, "seconds": round(seconds, 1), **figures})
        print(f"{part.name}: {status}, {seconds:.0f} s", flush=True)

    def _figures(self, part: Part) -> Path:
        return self.out / f".{part.name}.figures"


def end_tree(process: subprocess.Popen) -> None:
    """End a process and all that came of it, stopped ones and those of other sessions too."""
    import psutil

    try:
        whole = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        whole = []
    process.send_signal(signal.SIGINT)  # so tests still tell what they have found
    try:
        process.wait(10)
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

    def __init__(
        self, out: Path, machine: dict[str, Any], is_smoke: bool, started: float, names: list[str]
    ):
        self.out, self.machine, self.is_smoke, self.started = out, machine, is_smoke, started
        self.parts: dict[str, dict[str, Any]] = {
            name: {"status": "not begun", "seconds": 0.0} for name in names
        }

    def add(self, name: str, figures: dict[str, Any]) -> None:
        self.parts[name] = figures
        self.write()

    def write(self) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        machine = {key: value for key, value in self.machine.items() if key != "missing"}
        content = {"machine": machine, "smoke": self.is_smoke, "seconds": seconds}
        for name, text in {
            "report.json": json.dumps({**content, "parts": self.parts}, indent=1),
            "report.md": self.markdown(seconds),
        }.items():
            temporary = self.out / f".{name}.tmp"
            temporary.write_text(text)
            temporary.replace(self.out / name)

    def markdown(self, seconds: float) -> str:
        """Tables as they stand in docs/benchmarks.md."""
        has = self.machine
        where = has.get("card", has["processor"]) if has["device"] == "cuda" else has["processor"]
        versions = [f"torch {has['torch']}", f"Python {has['python']}", f"{has['cores']} cores"]
        if has["device"] == "cuda":
            versions.insert(0, f"driver {has['driver']}")
        lines = [f"### {where}", ""]
        if self.is_smoke:
            lines += ["At toy size: these figures say that all parts run, and nothing else.", ""]
        lines += [
            f"`make gpu`, {has['date']}: {', '.join(versions)}; {seconds:.0f} s.",
            "",
            "| part | | s |",
            "|---|---|---|",
            *(f"| {name} | {p['status']} | {p['seconds']:.0f} |" for name, p in self.parts.items()),
        ]
        sections = (self._tests, self._steps, self._scans, self._demo)
        for section in sections:
            if rows := section():
                lines += ["", *rows]
        return "\n".join(lines) + "\n"

    def _figures(self, *parts: str) -> list[dict[str, Any]]:
        return [found for part in parts if len(found := self.parts.get(part, {})) > 2]

    def _tests(self) -> list[str]:
        lines = []
        for found in self._figures("tests"):
            count = f"Tests: {found['passed']} passed, {len(found['failed'])} failed"
            lines.append(f"{count}, {len(found['skipped'])} skipped.")
            for name, message in found["failed"].items():
                lines += ["", f"* failed: `{name}`: {' '.join(message)}"]
            if found["figures"]:
                lines += ["", "| test | figure | |", "|---|---|---|"]
            for name, figures in found["figures"].items():
                lines += [f"| {name} | {key} | {value:.6g} |" for key, value in figures.items()]
        return lines

    def _steps(self) -> list[str]:
        lines = []
        for found in self._figures("student", "teacher"):
            size = "×".join(map(str, found["patch_size"]))
            lines += [
                f"Training the {found['network']}, {found['batch_size']} patches of {size}, "
                f"{found['workers']} loading processes:",
                "",
                "| | computed | steps/s | ratio | busy | waiting | peak GPU MB | peak MB |",
                "|---|---|---|---|---|---|---|---|",
            ]
            for way, f in found.get("ways", {}).items():
                cells = (
                    *(number(f["steps_per_s"], 2), number(f["ratio"], 2), percent(f["busy"])),
                    *(percent(f["waiting"]), number(f["peak_gpu_mb"]), number(f["peak_mb"])),
                )
                lines.append(f"| {way} | {f['how']} | {' | '.join(cells)} |")
            lines += ["", f"Chosen: {found.get('chosen', '–')}. " + self._beside(found), ""]
        return lines[:-1]

    @staticmethod
    def _beside(found: dict[str, Any]) -> str:
        text = f"Traced need: {number(found.get('traced_mb'))} MB."
        if times := found.get("augmenting"):
            each, batched = times.values()
            text += f" Augmenting a batch takes {each:.1f} ms each on the CPU"
            text += f" and {batched:.1f} ms in batches on the device."
        return text

    def _scans(self) -> list[str]:
        found = self._figures("ct-student", "ct-teacher")
        if not found:
            return []
        size = "×".join(map(str, found[0]["shape"]))
        stages = ("read_s", "preprocess_s", "network_s", "export_s", "write_s", "case_s")
        heads = [*(stage.removesuffix("_s") for stage in stages), "process", "peak GPU MB"]
        lines = [
            f"A CT of {size} voxels, seconds:",
            "",
            f"| | {' | '.join(heads)} |",
            f"|---|{'---|' * len(heads)}",
        ]
        for one in found:
            for way, figures in one["ways"].items():
                for place, run in enumerate(figures.get("runs", []), 1):
                    process = figures["process_s"] if place == 1 else None
                    cells = [number(run.get(stage), 2) for stage in stages]
                    cells += [number(process, 1), number(run["peak_gpu_mb"])]
                    lines.append(f"| {one['network']}, {way}, run {place} | {' | '.join(cells)} |")
        return lines

    def _demo(self) -> list[str]:
        lines = []
        for found in self._figures("demo"):
            times = ", ".join(
                f"{name}'s training {card['seconds']:.0f} s ({card['precision']})"
                for name, card in found["trainings"].items()
            )
            scores = ", ".join(
                f"{name} DSC {part['dsc']:.1f}, NSD {part['nsd']:.1f}"
                for name, part in found["scores"].items()
            )
            lines.append(f"The demo's workflow: {found['seconds']:.0f} s; {times}; {scores}.")
        return lines


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
