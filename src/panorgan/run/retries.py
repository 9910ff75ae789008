"""Which failed jobs are tried again, and with how much memory.

Snakemake retries every failure alike. But what a job has found wrong is wrong the next time too,
and a job that was stopped at its time limit needs no more memory than before. So each job leaves
word of how it ends (`panorgan.run.job`), and here that decides.
"""

import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from panorgan.io.tables import read_table
from panorgan.problems import Problems

PROBLEMS = ".problems.tsv"
"""What a job's problems have instead of its log's ending; there is no such file without any."""
FAILURE = "failure"
"""The column of these that says how the job ended."""

KILLED = "killed"
"""Without a word, as for want of memory or with its machine: more memory may help."""
STOPPED = "stopped"
"""By a signal that it has seen: its time was up, it was cancelled, or its place was needed."""
UNEXPECTED = "unexpected"
"""By an error of which nobody knows whether it comes again, such as a GPU's."""
WRONG = "wrong"
"""By a problem that somebody has to mend: it would come again."""

MOST_RETRIES = {KILLED: 3, STOPPED: math.inf, UNEXPECTED: 1, WRONG: 0}
"""After so many failures of a kind; all together no more than Snakemake's `--retries`."""

CLOCKS = 60.0
"""Seconds by which the clocks of a file server and of this machine may differ."""

_tries: dict[tuple[object, ...], set[int]] = {}
"""Which tries of a job have failed, by job and failure."""


def failure_of(log: str | Path, since: float = 0.0) -> str | None:
    """How the job that writes a log has ended, if it has left word after a moment.

    Parameters
    ----------
    log
        Of the job.
    since
        Seconds since the epoch.
    """
    path = Path(log).with_suffix(PROBLEMS)
    try:
        if path.stat().st_mtime < since - CLOCKS:
            return None
        rows = read_table(path)
    except (OSError, Problems):
        return None
    return rows[0].get(FAILURE) if rows else None


def memory_kills(rule: str, wildcards: Iterable[tuple[str, str]]) -> int:
    """How many tries of a job were killed in this run of Snakemake."""
    return len(_tries.get((KILLED, rule, *sorted(wildcards)), ()))


def retry_interruptions() -> None:
    """Have Snakemake try again what was interrupted, `--retries` times, and nothing that is wrong.

    What has left no word of this run, such as a job that a scheduler did not take, is tried again.
    """
    from snakemake.jobs import Job

    if getattr(Job, "retries_interruptions", False):
        return
    Job.restart_times = property(  # type: ignore[method-assign]
        partial(_restart_times, Job.restart_times.fget, time.time())
    )
    Job.retries_interruptions = True


def _restart_times(asked: Any, since: float, job: Any) -> float:
    failure = failure_of(job.log[0], since) if job.log else None
    if failure is None:
        return asked(job)
    name = failure, job.rule.name, *sorted(job.wildcards_dict.items())
    tries = _tries.setdefault(name, set())
    tries.add(job.attempt)
    return asked(job) if len(tries) <= MOST_RETRIES.get(failure, 0) else 0
