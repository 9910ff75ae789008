"""What every rule's script needs around its one function call: log, problems, GPU, a clean end."""

import ctypes
import errno
import faulthandler
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from panorgan.io.gpus import visible_gpus
from panorgan.io.processor import limit_spinning
from panorgan.io.resources import peak_memory
from panorgan.io.tables import read_table, table_text, write_table
from panorgan.io.writing import clear_temporaries, disk_full, making_folder, write_text
from panorgan.problems import Interrupted, Killed, Problem, Problems, Stop, unexpected
from panorgan.run.claims import claim
from panorgan.run.layout import benchmark_of, beside
from panorgan.run.retries import FAILURE, KILLED, PROBLEMS, STOPPED, UNEXPECTED, WRONG
from panorgan.run.store import NO_LINKS, ShardOutput, key_of

PROBLEM_COLUMNS = ("case", "file", "cause", "cure", FAILURE)
ENDED_BY = {Interrupted: STOPPED, Killed: KILLED}
SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
PARENT = os.getppid()
"""Asked early: of a parent that is dead when `_die_with_parent` is called no signal comes."""


@dataclass
class Job:
    """What a script's body gets, and says of what it did.

    Attributes
    ----------
    console
        Where Snakemake itself writes.
    computed
        How many cases, or models, were made; 0 if all that the job does is to publish finished
        ones. Then the log and the benchmark of the job that made them stay.
    """

    console: IO[str]
    computed: int = 1
    _log: Path | None = None
    _gpus: int = 0
    _claimed: socket.socket | None = None

    def claim_gpu(self) -> None:
        """Wait for a GPU of the job's own, if it is to have one.

        To be called before anything asks for GPUs, and only where there is something to compute.
        """
        if self._gpus and not self._claimed:
            self._claimed = _claim_gpu()

    def begin_in(self, folder: Path) -> None:
        """What has to be done before a training begins whose states lie in a folder."""
        self.keep_log(folder)
        self.claim_gpu()

    def keep_log(self, folder: Path) -> None:
        """Give the log a second name in a folder, ``log-0001.txt`` and so on.

        Snakemake deletes the first one when it starts the same job again, also while this process
        goes on as an orphan.
        """
        number = 1 + len(list(folder.glob("log-*.txt")))
        try:
            os.link(self._log, folder / f"log-{number:04d}.txt")
        except OSError as error:
            # Gone already: the same job has been started again.
            if error.errno not in (*NO_LINKS, errno.ENOENT):
                raise


@contextmanager
def job(snakemake: Any) -> Iterator[Job]:
    """Run a script's body with everything that it prints, C-level output too, in the rule's log.

    A user's mistake ends as a table of problems beside the log and one line on the console;
    anything unexpected leaves its traceback in the log. What the job took stands in ``benchmarks``.
    The process ends when its parent dies.
    """
    log = Path(snakemake.log[0])
    problems_file = log.with_suffix(PROBLEMS)
    records, kept = _records(log)
    for folder in {path.parent for path in (*map(Path, snakemake.output), *records, *kept)}:
        clear_temporaries(folder)
    cure = "see its log and the scheduler's; finished work is kept"

    def leave_word(failure: str, cause: str) -> None:
        _record(problems_file, [Problem("", "", f"{snakemake.rule} was {cause}", cure)], failure)

    # Stands until the job ends well or says why not: a killed job cannot say anything.
    leave_word(KILLED, "killed: out of memory?")
    started = time.monotonic()
    limit_spinning()
    _when_stopped(lambda: leave_word(STOPPED, "stopped: out of time?"))
    _die_with_parent()
    with _output_to(log) as console:
        faulthandler.enable()
        this = Job(console, _log=log, _gpus=snakemake.resources.get("gpu") or 0)
        try:
            yield this
            _leave_records(log, time.monotonic() - started, this.computed)
            problems_file.unlink(missing_ok=True)
            return
        except Problems as error:
            problems = error.problems
            failure = ENDED_BY.get(type(error), WRONG)
        except Exception as error:
            # A log that cannot be written on is how a full disk shows where all else is done.
            full = disk_full(error, getattr(error, "filename", None) or log)
            problems = full.problems if full else [unexpected(error, log=_say)]
            failure = WRONG if full else UNEXPECTED
        finally:
            if this._claimed:
                this._claimed.close()
        _say("\n".join(map(str, problems)))
        _record(problems_file, problems, failure)
        count = f"{len(problems)} problems, the first: " if len(problems) > 1 else ""
        print(f"{snakemake.rule}: {count}{problems[0]}", file=console, flush=True)
        sys.exit(1)


def _say(text: str) -> None:
    """Print into the log, as far as the disk has room."""
    with suppress(OSError):
        print(text, flush=True)


def _record(path: Path, problems: Sequence[Problem], failure: str) -> None:
    """Write down a job's problems and how it ends, as far as the disk has room."""
    rows = [vars(problem) | {FAILURE: failure} for problem in problems]
    try:
        write_table(path, PROBLEM_COLUMNS, rows)
    except Stop:
        # What the file holds already has room for another text.
        with suppress(OSError), open(path, "r+") as file:
            file.write(table_text(PROBLEM_COLUMNS, rows))
            file.truncate()


def _records(log: Path) -> tuple[list[Path], list[Path]]:
    """A job's log and benchmark, and the same in the store."""
    records = [log, benchmark_of(log)]
    return records, [beside(path, ".store") for path in records]


def _leave_records(log: Path, seconds: float, computed: int) -> None:
    """Say what the job took; or, where it made nothing, leave what the job that did has said.

    The store keeps logs too: Snakemake deletes them before a job.
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = peak_memory() / 2**20
    print(f"done in {seconds:.1f} s, peak memory {memory:.0f} MB", flush=True)
    records, kept = _records(log)
    if not computed and all(path.exists() for path in kept):
        for source, target in zip(kept, records, strict=True):
            write_text(target, source.read_text())
        return
    cpu = usage.ru_utime + usage.ru_stime
    row = {"s": f"{seconds:.1f}", "cpu_s": f"{cpu:.1f}", "peak_mb": f"{memory:.0f}"}
    write_table(records[1], list(row), [row])
    # An orphan's log may have lost its name to that of the job which waits for it.
    write_text(kept[0], Path("/proc/self/fd/1").read_text())
    write_text(kept[1], records[1].read_text())


@contextmanager
def _output_to(log: Path) -> Iterator[IO[str]]:
    """Send standard output and error, of this process and its children, into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as console, _opened(log, console) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)
        yield console


def _opened(log: Path, console: IO[str]) -> IO[str]:
    """A log; the process ends with a line on the console if the disk has no room for one."""
    try:
        with making_folder(log.parent):
            return open(log, "w")
    except (OSError, Stop) as error:
        print(disk_full(error, log) or error, file=console, flush=True)
        sys.exit(1)


def _when_stopped(leave_word: Callable[[], None]) -> None:
    """Have a function called before a signal that others send at a time limit ends the process."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        leave_word()
        os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that a killed run leaves no orphan."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != PARENT:
        os.kill(os.getpid(), signal.SIGTERM)


def shard_output(snakemake: Any) -> ShardOutput:
    """A shard rule's declared outputs, and its place in the run's store."""
    outputs = {name: Path(path) for name, path in snakemake.output.items()}
    table, folder = outputs.pop("table"), outputs.pop("folder", None)
    return ShardOutput(beside(table.with_suffix(""), ".store"), table, folder, outputs)


def _claim_gpu() -> socket.socket | None:
    """Take a GPU that no other job of this machine uses; freed when the process ends.

    Under a scheduler, which hands out GPUs itself and may call each job's first one 0, claims are
    those of the scheduler's job.
    """
    gpus = visible_gpus()
    if not gpus:
        print("no GPU: running on the CPU")
        return None
    scheduled = "".join(
        f"-{os.environ[name]}" for name in SCHEDULER_VARIABLES if name in os.environ
    )
    print(f"waiting for one of the GPUs {', '.join(gpus)}")
    while True:
        for gpu in gpus:
            if found := claim(f"gpu-{key_of([scheduled, gpu])}"):
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                print(f"running on GPU {gpu}")
                return found
        time.sleep(1)


def report_problems(logs: str | Path, since: float, most: int = 20) -> str:
    """The problems that jobs recorded after a moment, as the last lines of a failed run.

    Parameters
    ----------
    logs
        The run's folder of logs.
    since
        Seconds since the epoch.
    most
        At most so many problems are listed.
    """
    files = [
        path for path in sorted(Path(logs).rglob("*" + PROBLEMS)) if path.stat().st_mtime >= since
    ]
    rows = (row for path in files for row in read_table(path))
    lines = [str(Problem(*map(row.get, PROBLEM_COLUMNS[:-1]))) for row in rows]
    lines = list(dict.fromkeys(lines))
    shown = lines[:most]
    if len(lines) > most:
        shown.append(f"… and {len(lines) - most} more")
    where = [str(path).removesuffix(PROBLEMS) + ".log" for path in files]
    shown.append(f"logs: {', '.join(where[:most])}" if where else f"logs: {logs}")
    return "\n".join(shown)
