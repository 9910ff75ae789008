"""Write docs/licences.md: under which licences stands what panorgan installs.

    make docs

A package's licence is what its own metadata say, or, where they say nothing or too little, what
stands in `READ`. Which part of panorgan needs it follows from pyproject.toml and the packages'
requirements, on the Python that runs this.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from collect_wheels import REPOSITORY, read_list
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = REPOSITORY / "docs/licences.md"

PARTS = {
    "": "always",
    "predict": "`[predict]`",
    "train": "`[train]`",
    "workflow": "`[workflow]`",
    "test": "tests",
    "build": "to install a checkout",
}
"""What installs a package, the first that does; the extras of pyproject.toml by name."""

BUILD = ("hatchling", "editables")

READ = {
    "conda-inject": "MIT",
    "docutils": "public domain; some files BSD-2-Clause, one GPL-3.0-or-later (Emacs mode)",
    "future": "MIT",
    "kiwisolver": "BSD-3-Clause",
    "linecache2": "PSF-2.0",
    "matplotlib": "PSF-2.0 (matplotlib's own variant)",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "scikit-image": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "simpleitk": "Apache-2.0",
    "snakemake-interface-common": "MIT",
    "snakemake-interface-logger-plugins": "MIT",
    "snakemake-interface-report-plugins": "MIT",
    "snakemake-interface-scheduler-plugins": "MIT",
    "snakemake-interface-storage-plugins": "MIT",
    "torchvision": "BSD-3-Clause",
    "traceback2": "PSF-2.0",
    "unittest2": "BSD-3-Clause",
}
"""Read in their licence files, as their metadata name none or several without saying for what."""

SPDX = {
    "apache.*": "Apache-2.0",
    "osi approved :: apache.*": "Apache-2.0",
    "(the )?mit.*": "MIT",
    "isc.*": "ISC",
    "3-clause bsd.*|bsd 3-clause.*": "BSD-3-Clause",
    "bsd( license)?": "BSD",
    "python software foundation.*": "PSF-2.0",
    "mozilla public license 2.0.*": "MPL-2.0",
}
"""What metadata say in words."""

COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL|OSL|CC-BY-SA|SSPL)\b|copyleft", re.I)

HEAD = """# Licences of what is installed

Made by `make docs` from the metadata of the packages that `envs/constraints.txt` pins. A test
compares it with what is installed, and fails if anything that `pip install panorgan` or
`panorgan[predict]` brings is copyleft.

Copyleft, and installed for other parts only:

{copyleft}

None of it is part of panorgan or linked into it. MPL-2.0 asks that changes to a package's own files
stay open.

These are the licences of the packages themselves. Wheels bring shared libraries of others along,
which each package's licence file names: NumPy's and SciPy's those of GCC (libgfortran: GPL-3.0 with
the exception for what is compiled with it; libquadmath: LGPL-2.1), Pillow's those for formats of
pictures. torch with CUDA brings NVIDIA's (`nvidia-…`, proprietary) and Triton (MIT); they are not
pinned here, as their versions are torch's to say.

| Package | Version | Licence | Needed |
| --- | --- | --- | --- |
"""


def licence_of(package: Distribution) -> str:
    """The licence of an installed package, as an SPDX expression where it can be told."""
    facts = package.metadata
    if read := READ.get(canonicalize_name(facts["Name"])):
        return read
    if said := facts.get("License-Expression"):
        return said
    said = (facts.get("License") or "").strip()
    kinds = [
        entry.rpartition(" :: ")[2]
        for entry in facts.get_all("Classifier") or []
        if entry.startswith("License ::")
    ]
    # One line says more than a classifier, which has one "BSD License" for all of them.
    if not said or "\n" in said or said == "UNKNOWN":
        said = " AND ".join(map(_spdx, kinds)) or said.partition("\n")[0]
    return _spdx(said)


def _spdx(said: str) -> str:
    said = said.strip()
    for words, name in SPDX.items():
        if re.fullmatch(words, said, re.I):
            return name
    return said


def needed(part: str) -> set[str]:
    """Names of the installed packages that a part of `PARTS` needs, always needed ones included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"].get(part, [])]
    to_see = [Requirement(text) for text in [*texts, *(BUILD if part == "build" else ())]]
    found: set[str] = set()
    asked = set()
    while to_see:
        wanted = to_see.pop()
        name = canonicalize_name(wanted.name)
        if (name, *sorted(wanted.extras)) in asked:
            continue
        asked.add((name, *sorted(wanted.extras)))
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:  # CUDA's, beside a torch without it
            continue
        found.add(name)
        for other in map(Requirement, requirements):
            extras = ("", *wanted.extras)
            if not other.marker or any(other.marker.evaluate({"extra": one}) for one in extras):
                to_see.append(other)
    return found


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Package, version, licence and part of each pinned package that is installed and needed."""
    pins = read_list(REPOSITORY / "envs/constraints.txt")
    parts = {part: needed(part) for part in PARTS}
    for name, version in sorted(pins.items()):
        for part, title in PARTS.items():
            if name in parts[part]:
                yield name, version, licence_of(distribution(name)), title
                break


def page() -> str:
    """The text of docs/licences.md."""
    found = list(rows())
    copyleft = [
        f"* {name}, {part}: {licence}"
        for name, _, licence, part in found
        if COPYLEFT.search(licence)
    ]
    return HEAD.format(copyleft="\n".join(copyleft)) + "".join(
        f"| {' | '.join(row)} |\n" for row in found
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
