"""The files that describe the environment agree with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]


def _pins(lines: list[str]) -> dict[str, str]:
    """Version by package, from lines such as ``numpy==2.4.6``."""
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _pins_of(file: str) -> dict[str, str]:
    return _pins((REPOSITORY / "envs" / file).read_text().splitlines())


def test_requirements_pin_each_dependency_within_its_bounds():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = [Requirement(text) for text in sum(extras, project["dependencies"])]
    pins = _pins_of("requirements.txt")

    outside = [
        str(one) for one in declared if pins[canonicalize_name(one.name)] not in one.specifier
    ]

    assert outside == []


@pytest.mark.parametrize("other", ["constraints.txt", "panorgan.yaml"])
def test_other_files_have_the_same_pins(other):
    pins = _pins_of("requirements.txt")
    if other == "constraints.txt":
        found = {name: version for name, version in _pins_of(other).items() if name in pins}
    else:
        conda = yaml.safe_load((REPOSITORY / "envs" / other).read_text())
        found = _pins(conda["dependencies"][-1]["pip"])

    assert found == pins


def test_all_but_torch_is_hashed():
    """`make hashes` writes them anew after a change of the pins."""
    pins = _pins_of("constraints.txt")
    del pins["torch"]
    found = {}
    for file in ("hashes.txt", "hashes-sources.txt"):
        lines = (REPOSITORY / "envs" / file).read_text().splitlines()
        wanted = " ".join(line for line in lines if not line.startswith("#")).replace("\\ ", "")
        # Nothing but pins, each with a hash: no index, no option.
        pin = r"([\w.-]+==[\w.]+) ((?: *--hash=sha256:[0-9a-f]{64})+) *"
        assert re.fullmatch(f"({pin})+", wanted)
        found |= _pins([name for name, _ in re.findall(pin, wanted)])
    assert found == pins


def test_no_file_of_the_environment_names_an_index():
    named = re.compile(r"https?://|--(extra-)?index-url|--find-links")
    for path in (REPOSITORY / "envs").glob("*.*"):
        assert not named.search(path.read_text()), path
