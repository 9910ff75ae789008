"""The control groups by which Linux limits this process, of versions 1 and 2."""

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group that limits this process, the innermost first.

    Parameters
    ----------
    controller
        cpu or memory.
    root
        Where ``proc`` and ``sys`` are.
    """
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, inner = line.split(":", 2)
        if controllers == "":
            version, top = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, top = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        inside = top / inner.strip("/")
        for folder in (inside, *(path for path in inside.parents if path.is_relative_to(top))):
            yield version, folder


def text_of(path: Path) -> str:
    """What the kernel says in a file; empty if it does not say it here."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
