"""Write envs/hashes.txt and envs/hashes-sources.txt: the SHA-256 of each pinned package's files.

    make hashes [MACHINE=x86_64]

They are what the index has that pip uses here, for Linux and every Python that panorgan runs on;
docs/security.md says what they are good for. Left out is torch, of which each machine takes the
build for its own GPU, with all that only that build brings along.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from collect_wheels import PYTHONS, REPOSITORY, platforms, read_list
from packaging.utils import canonicalize_name

UNHASHED = ("torch",)
WHEELS = REPOSITORY / "envs/hashes.txt"
SOURCES = REPOSITORY / "envs/hashes-sources.txt"
"""Of packages that are published as source code alone: what stands in `WHEELS` builds them."""

HEAD = """# {what} of envs/constraints.txt, torch apart, for Linux on {machine} and Python
# {pythons}. Made by `make hashes`; `make env HASHES=1` installs from it.
"""

Hashes = dict[str, set[str]]


def ask(pins: Iterable[str], *options: str) -> tuple[Hashes, Hashes]:
    """Hashes of the wheels and of the sources that pip would install, by package."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        wanted.write_text("\n".join(pins))
        command = [
            *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"),
            *("--dry-run", "--ignore-installed", "--no-deps", "--report", str(report)),
            *("--target", folder, *options, "-r", str(wanted)),
        ]
        if subprocess.run(command).returncode:
            sys.exit("pip does not find all packages; the lines above say which")
        chosen = json.loads(report.read_text())["install"]
    found: tuple[Hashes, Hashes] = {}, {}
    for one in chosen:
        name = canonicalize_name(one["metadata"]["name"])
        file = one["download_info"]
        kind = found[not file["url"].endswith(".whl")]
        kind[name] = {file["archive_info"]["hashes"]["sha256"]}
    return found


def text(what: str, machine: str, pins: dict[str, str], hashes: Hashes) -> str:
    """A requirements file with hashes."""
    lines = []
    for name, found in sorted(hashes.items()):
        each = (f"--hash=sha256:{one}" for one in sorted(found))
        lines.append(" \\\n    ".join([f"{name}=={pins[name]}", *each]))
    return HEAD.format(what=what, machine=machine, pythons=", ".join(PYTHONS)) + "\n".join(
        [*lines, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default=platform.machine(), help="`uname -m` of Linux")
    machine = parser.parse_args().machine
    pins = read_list(REPOSITORY / "envs/constraints.txt")
    pins = {name: version for name, version in pins.items() if name not in UNHASHED}
    wheels, sources = ask(f"{name}=={version}" for name, version in pins.items())
    if machine != platform.machine():
        wheels = {name: set() for name in wheels}
    binary = [f"{name}=={pins[name]}" for name in wheels]
    for python in PYTHONS:  # the own one too: with an older glibc pip may take another wheel
        others, _ = ask(
            binary,
            *("--only-binary", ":all:", "--implementation", "cp", "--python-version", python),
            *(part for name in platforms(machine) for part in ("--platform", name)),
        )
        for name, found in others.items():
            wheels[name] |= found
    WHEELS.write_text(text("The wheels", machine, pins, wheels))
    SOURCES.write_text(text("What has no wheels", machine, pins, sources))


if __name__ == "__main__":
    main()
