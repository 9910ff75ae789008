"""Collect what panorgan needs on a machine without network that has a PyTorch of its own.

    python envs/collect_wheels.py --out DIR --python 3.12 [--there LIST] [--machine aarch64]

Left out are torch with CUDA, the large packages of the usual scientific Python (`THERE`), all that
these require, and what nnU-Net requires but nothing here imports (`UNUSED`). With `--there`, the
output of `pip list --format=freeze` on that machine, exactly what is there in a fitting version is
left out instead. Versions are those of envs/constraints.txt. On the machine:

    python3 -m pip install --no-index --no-deps --target DIR2 DIR/*.whl
    export PYTHONPATH=DIR2
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
ROOTS = ("panorgan[train]", "snakemake", "pytest", "hypothesis")
"""What the workflow and `make gpu` are run with."""

THERE = ("torch", "numpy", "scipy", "numba", "matplotlib", "pandas", "scikit-image", "scikit-learn")

UNUSED = {
    "simpleitk": "nnU-Net's reader of other formats; panorgan.nnunet stands in for its name",
    "imagecodecs": "compressed TIFF",
    "graphviz": "drawings of networks",
    "yacs": "nothing imports it",
    "timm": "nnU-Net's transformers",
    "torchvision": "nnU-Net's transformers",
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
        sys.exit(f"that machine has {has}: panorgan needs its own build of {_torch_wanted()} there")
    return sorted(found - {"panorgan"})


def _torch_wanted() -> str:
    return next(text for text in requires("panorgan") or [] if text.startswith("torch"))


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
    """Versions by package from the lines of `pip list --format=freeze`."""
    pairs = (line.split("==") for line in path.read_text().splitlines() if "==" in line)
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def collect(out: Path, names: list[str], python: str, machine: str) -> None:
    """Fetch the wheels of some packages into a folder, and make panorgan's own."""
    pins = read_list(REPOSITORY / "envs/constraints.txt")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    platforms += [f"manylinux{year}_{machine}" for year in ("1", "2010", "2014")]
    subprocess.run(
        [
            *(*pip, "download", "--no-deps", "--dest", str(out)),
            *("--implementation", "cp", "--python-version", python),
            *(part for name in platforms for part in ("--platform", name)),
            *(f"{name}=={pins[name]}" for name in names),
        ],
        check=True,
    )
    # Some are published as source code alone.
    sources = [path for path in out.iterdir() if path.name.endswith((".tar.gz", ".zip"))]
    wheel = [*pip, "wheel", "--no-deps", "--wheel-dir", str(out)]
    for source in sources:
        subprocess.run([*wheel, str(source)], check=True)
        source.unlink()
    subprocess.run([*wheel, "--no-build-isolation", str(REPOSITORY)], check=True)
    wheels = list(out.glob("*.whl"))
    if foreign := [w.name for w in wheels if not w.stem.endswith(("-any", f"_{machine}"))]:
        sys.exit(f"made for this machine alone: {', '.join(foreign)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the wheels")
    parser.add_argument("--python", default=OWN, help="of the other machine, such as 3.12")
    parser.add_argument("--machine", default=platform.machine(), help="its `uname -m`")
    parser.add_argument("--there", type=Path, help="its `pip list --format=freeze`")
    arguments = parser.parse_args()
    there = read_list(arguments.there) if arguments.there else usually_there()
    names = needed(arguments.python, arguments.machine, there)
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists already: name another folder, or remove it")
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
