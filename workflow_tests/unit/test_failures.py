"""An error ends its own case, with a line; a `Stop` ends them all."""

import errno
import os

import pytest

from panorgan.io.failures import Failures
from panorgan.io.volumes import VolumeError
from panorgan.problems import TRACEBACK, Problem, Problems, Stop

MEMORY = r"does not fit into memory, of which [\d,.]+ GB are free"
MORE = r"; use a machine with more of it \(mem_mb of a job\)"
SEEN = "set PANORGAN_TRACEBACK=1 to see where"


def try_all(failures, **errors):
    """Try some cases, which fail with these errors or (None) not at all; those that did not."""
    done = []
    for case, error in errors.items():
        with failures.of(case, f"{case}.nii.gz"):
            if error:
                raise error
            done.append(case)
    return done


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (VolumeError("is truncated", "copy it again"), "a: a.nii.gz: is truncated; copy it again"),
        (Problems.one("is bad", "mend it"), "a: a.nii.gz: is bad; mend it"),
        (Problems.one("is bad", "mend it", case="b", file="f"), "b: f: is bad; mend it"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out/a.nii.gz"),
            "a: out/a.nii.gz: permission denied; check the path, its permissions and the disk",
        ),
        (TypeError("no\nnumber"), f"a: a.nii.gz: unexpected TypeError: no; {SEEN}"),
        (
            RuntimeError("shapes differ"),
            f"a: a.nii.gz: unexpected RuntimeError: shapes differ; {SEEN}",
        ),
        (OSError("cannot be said"), f"a: a.nii.gz: unexpected OSError: cannot be said; {SEEN}"),
    ],
)
def test_an_error_is_a_line(error, line):
    failures = Failures()
    assert try_all(failures, a=error, z=None) == ["z"]
    with pytest.raises(Problems) as caught:
        failures.check()
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 23.0 GiB"), ": Unable to allocate 23.0 GiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), r": \[Errno 12\] Cannot allocate memory"),
    ],
)
def test_memory_is_said_with_what_is_free(error, asked):
    failures = Failures()
    assert try_all(failures, a=error, z=None) == ["z"]
    with pytest.raises(Problems, match=f"^a: a.nii.gz: {MEMORY}{asked}{MORE}$"):
        failures.check()


def test_without_an_error_there_is_nothing_to_say():
    failures = Failures()
    assert try_all(failures, a=None, b=None) == ["a", "b"]
    failures.check()


def test_what_all_would_have_ends_all_with_what_was_found_before():
    full = Stop([Problem("", "out", "no space left on the disk", "free some")])
    with pytest.raises(Stop) as caught:
        try_all(Failures(), a=ValueError("x"), b=full, c=None)
    assert [(p.case, p.file) for p in caught.value.problems] == [("a", "a.nii.gz"), ("b", "out")]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_what_is_no_cases_ends_all(error):
    """Ctrl-C, a reader of what is printed that has left, a log without room."""
    with pytest.raises(type(error)):
        try_all(Failures(), a=error, b=None)


def test_the_traceback_is_shown_if_asked_for_or_logged(monkeypatch, capsys):
    try_all(Failures(), a=ValueError("x"))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(os.environ, TRACEBACK, "1")
    try_all(Failures(), a=ValueError("x"))
    assert "Traceback" in capsys.readouterr().err
    log = []
    failures = Failures(log.append)
    try_all(failures, a=ValueError("x"), b=VolumeError("is truncated", "copy it again"))
    line = "a: a.nii.gz: unexpected ValueError: x; the log has the traceback"
    assert str(failures.problems[0]) == line
    assert "Traceback" in log[0]
    assert log[1:] == [line, "b: b.nii.gz: is truncated; copy it again"]
    assert capsys.readouterr() == ("", "")
