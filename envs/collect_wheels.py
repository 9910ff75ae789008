"""Collect what panorgan needs on a machine without network that has a PyTorch of its own.

    make wheels OUT=DIR PYTHON_VERSION=3.12 [THERE=LIST] [MACHINE=aarch64]

Left out are torch with CUDA, the large packages of the usual scientific Python (`THERE`), all that
these require, and what nnU-Net requires but nothing here imports (`UNUSED`). With a list, the
output of `pip list --format=freeze` on that machine, exactly what is there in a fitting version is
left out instead. Versions are those of envs/constraints.txt. docs/running.md says how they are
installed there.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
OWN = ".".join(platform.python_version_tuple()[:2])
ROOTS = ("panorgan[train,workflow]", "pytest", "hypothesis")
"""What the workflow and `make gpu` are run with."""

PYTHONS = ("3.11", "3.12", "3.13")

THERE = ("torch", "numpy", "scipy", "numba", "matplotlib", "pandas", "scikit-image", "scikit-learn")

UNUSED = {
    "simpleitk": "nnU-Net's reader of other formats; panorgan.nnunet stands in for its name",
    "imagecodecs": "compressed TIFF",
    "graphviz": "drawings of networks",
    "yacs": "nothing imports it",
    "timm": "nnU-Net's transformers",
    "torchvision": "nnU-Net's transformers",
    "openvino": "networks on a CPU; on a GPU torch computes them",
    "unittest2": "batchgenerators' own tests",
    "future": "batchgenerators' Python 2",
}

GLIBC = range(5, 29)
"""Minor versions of glibc 2 that wheels may be for; PyTorch itself needs 28."""


def needed(python: str, machine: str, there: dict[str, str]) -> list[str]:
    """Names of the packages to carry, panorgan itself apart.

    Parameters
    ----------
    python, machine
        Of the other machine: 3.12, x86_64.
    there
        Version of each package that it has; "" for any.
    """
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
    }
    found: set[str] = set()
    asked = set()
    to_see = [Requirement(root) for root in ROOTS]
    while to_see:
        wanted = to_see.pop()
        name = canonicalize_name(wanted.name)
        version = there.get(name)
        fits = version is not None and (not version or wanted.specifier.contains(version, True))
        if name in UNUSED or fits or (name, *wanted.extras) in asked:
            continue
        asked.add((name, *wanted.extras))
        found.add(name)
        for text in requires(name) or []:
            other = Requirement(text)
            extras = [environment | {"extra": extra} for extra in ("", *wanted.extras)]
            if not other.marker or any(map(other.marker.evaluate, extras)):
                to_see.append(other)
    if "torch" in found:
        has = f"torch {there['torch']}" if "torch" in there else "no torch"
        sys.exit(
            f"that machine has {has}, and torch is not carried: install one there that fits its "
            f"GPU, of a version {_torch_wanted()}"
        )
    return sorted(found - {"panorgan"})


def _torch_wanted() -> str:
    wanted = (Requirement(text) for text in requires("panorgan") or [])
    return str(next(one.specifier for one in wanted if one.name == "torch"))


def usually_there() -> dict[str, str]:
    """The packages of `THERE` and all that they require."""
    found: dict[str, str] = {}
    to_see = list(THERE)
    while to_see:
        name = canonicalize_name(to_see.pop())
        if name in found:
            continue
        found[name] = ""
        # Their own optional parts are not required; those for another system harm nothing.
        parts = map(Requirement, _required_by(name))
        to_see += [part.name for part in parts if "extra" not in str(part.marker)]
    return found


def _required_by(name: str) -> list[str]:
    try:
        return requires(name) or []
    except ModuleNotFoundError:  # of another platform, or CUDA's
        return []


def read_list(path: Path) -> dict[str, str]:
    """Versions by package from the lines of `pip list --format=freeze`, or of `pip freeze`.

    A line with a place instead of a version stands for whatever version is there: "".
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        name, sign, version = text.partition("==")
        if not sign:
            name, sign, version = *text.partition(" @ ")[:2], ""
        if not sign:
            sys.exit(
                f"{path}, line {number} is not PACKAGE==VERSION: {line.strip()!r}. Make the list "
                "with: python3 -m pip list --format=freeze"
            )
        found[canonicalize_name(name.strip())] = version.strip()
    return found


def collect(out: Path, names: list[str], python: str, machine: str) -> None:
    """Fetch the wheels of some packages into a folder, and make panorgan's own."""
    pins = read_list(REPOSITORY / "envs/constraints.txt")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    call(
        *(*pip, "download", "--no-deps", "--dest", str(out)),
        *("--implementation", "cp", "--python-version", python),
        *(part for name in platforms(machine) for part in ("--platform", name)),
        *(f"{name}=={pins[name]}" for name in names),
    )
    # Some are published as source code alone.
    sources = [path for path in out.iterdir() if path.name.endswith((".tar.gz", ".zip"))]
    wheel = [*pip, "wheel", "--no-deps", "--wheel-dir", str(out)]
    for source in sources:
        call(*wheel, str(source))
        source.unlink()
    call(*wheel, "--no-build-isolation", str(REPOSITORY))
    wheels = list(out.glob("*.whl"))
    if foreign := [w.name for w in wheels if not w.stem.endswith(("-any", f"_{machine}"))]:
        sys.exit(f"made for this machine alone: {', '.join(foreign)}")


def platforms(machine: str) -> list[str]:
    """What wheels for Linux on a machine may be called."""
    names = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    return names + [f"manylinux{year}_{machine}" for year in ("1", "2010", "2014")]


def call(*command: str) -> None:
    """Run pip, which says itself what went wrong."""
    if subprocess.run(command).returncode:
        sys.exit("pip could not collect the wheels; the lines above say why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--python", default=OWN, choices=PYTHONS, help="of the other machine")
    parser.add_argument("--machine", default=platform.machine(), help="its `uname -m`")
    parser.add_argument("--there", type=Path, help="its `pip list --format=freeze`")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists already: name another folder, or remove it")
    there = read_list(arguments.there) if arguments.there else usually_there()
    names = needed(arguments.python, arguments.machine, there)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix=".wheels-") as folder:
        wheels = Path(folder, "wheels")
        wheels.mkdir()
        collect(wheels, names, arguments.python, arguments.machine)
        wheels.rename(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.iterdir()) / 1e6
    print(
        f"{arguments.out}: {len(names) + 1} wheels for Python {arguments.python} on "
        f"{arguments.machine}, {size:.0f} MB"
    )


if __name__ == "__main__":
    main()
