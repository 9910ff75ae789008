"""What every rule's script needs around its one function call: log, problems, GPU, a clean end."""

import ctypes
import faulthandler
import fcntl
import glob
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from panorgan.problems import Problem, Problems
from panorgan.store import ShardOutput
from panorgan.tables import read_table, write_table

PROBLEM_COLUMNS = ("case", "file", "cause", "cure")
SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
PARENT = os.getppid()
"""Asked early: of a parent that is dead when `_die_with_parent` is called no signal comes."""


@contextmanager
def job(snakemake: Any) -> Iterator[IO[str]]:
    """Run a script's body with everything that it prints, C-level output too, in the rule's log.

    A user's mistake ends as a table of problems (`log.problems`) and one line on the console;
    anything unexpected leaves its traceback in `log.text`. The process ends when its parent dies.
    The block gets the console, where Snakemake itself writes.
    """
    problems_file = Path(snakemake.log.problems)
    # Stands until the job ends well or says why not: a killed job cannot say anything.
    killed = f"{snakemake.rule} was killed: out of memory or time?"
    cure = "see its log and the scheduler's; finished work is kept"
    write_table(problems_file, PROBLEM_COLUMNS, [vars(Problem("", "", killed, cure))])
    started = time.monotonic()
    _die_with_parent()
    with _output_to(snakemake.log.text) as console:
        faulthandler.enable()
        gpu = _claim_gpu() if snakemake.resources.get("gpu") else None
        try:
            yield console
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"done in {time.monotonic() - started:.1f} s, peak memory {memory:.0f} MB")
            problems_file.unlink(missing_ok=True)
            return
        except Problems as error:
            problems = error.problems
        except Exception as error:
            traceback.print_exc()
            cause = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
            problems = [Problem("", "", cause, "the log has the traceback")]
        finally:
            if gpu:
                gpu.close()
        for problem in problems:
            print(problem, flush=True)
        write_table(problems_file, PROBLEM_COLUMNS, (vars(problem) for problem in problems))
        count = f"{len(problems)} problems, the first: " if len(problems) > 1 else ""
        print(f"{snakemake.rule}: {count}{problems[0]}", file=console, flush=True)
        sys.exit(1)


@contextmanager
def _output_to(log: str) -> Iterator[IO[str]]:
    """Send standard output and error, of this process and its children, into a file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w") as console, open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)
        yield console


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
    store = store_of(table.with_suffix(""), snakemake.config["run"])
    return ShardOutput(store, table, folder, outputs)


def store_of(output: Path, run: str) -> Path:
    """Where the store keeps what is published as `output`."""
    root = Path("results") / run
    return root / ".store" / output.relative_to(root)


def gpu_files() -> list[str]:
    """What the driver shows of the machine's NVIDIA GPUs, one file each."""
    return glob.glob("/dev/nvidia[0-9]*")


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        named = [gpu.strip() for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return [gpu for gpu in named if gpu not in ("", "-1", "NoDevFiles")]
    return [str(index) for index, _ in enumerate(gpu_files())]


def _claim_gpu() -> IO[str] | None:
    """Take a GPU that no other job of this machine uses; freed when the process ends.

    Under a scheduler, which hands out GPUs itself and may call each job's first one 0, the locks
    are those of the scheduler's job.
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
            lock = _open_shared(Path(tempfile.gettempdir()) / f"panorgan-gpu{scheduled}-{gpu}.lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            print(f"running on GPU {gpu}")
            return lock
        time.sleep(1)


def _open_shared(path: Path) -> IO[str]:
    """Open a lock file that other users of the machine can lock too."""
    mask = os.umask(0)
    try:
        # Linux refuses O_CREAT on another user's file in /tmp, but not a plain opening.
        flags = os.O_RDWR if path.exists() else os.O_RDWR | os.O_CREAT
        return os.fdopen(os.open(path, flags, 0o666), "r+")
    finally:
        os.umask(mask)


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
        path
        for path in sorted(Path(logs).rglob("*.problems.tsv"))
        if path.stat().st_mtime >= since and path.stat().st_size
    ]
    lines = [str(Problem(**row)) for path in files for row in read_table(path)]
    lines = list(dict.fromkeys(lines))
    shown = lines[:most]
    if len(lines) > most:
        shown.append(f"… and {len(lines) - most} more")
    where = [str(path).removesuffix(".problems.tsv") + ".log" for path in files]
    shown.append(f"logs: {', '.join(where[:most])}" if where else f"logs: {logs}")
    return "\n".join(shown)
