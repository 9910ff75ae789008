"""The recipes of the image, read without a container engine."""

import json
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import cannot_run

from panorgan.cli import _parser

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
DEFINITION = (REPOSITORY / "container/panorgan.def").read_text()


def section(name: str) -> list[str]:
    """Lines of a section of Apptainer's definition."""
    found = re.search(rf"^%{name}\n((?:    .*\n)+)", DEFINITION, re.M)
    return [line.strip() for line in found[1].splitlines()]


def docker_arguments() -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))


def copied_by_docker() -> set[str]:
    """What is copied from the checkout, with the default of each argument."""
    lines = re.findall(r"^COPY ((?!--from).*) \S+$", DOCKERFILE, re.M)
    sources = " ".join(lines).split()
    return {re.sub(r"\$\{(\w+)\}", lambda name: docker_arguments()[name[1]], s) for s in sources}


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        cannot_run("hadolint is not installed")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_docker_copies_is_there_and_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()[1:]
    for source in copied_by_docker():
        assert (REPOSITORY / source).exists(), source
        places = [Path(source), *Path(source).parents][:-1]
        assert not [p for p in places for pattern in ignored if fnmatch(str(p), pattern)], source


def test_apptainer_makes_the_same_image():
    arguments = dict(line.split("=") for line in section("arguments"))
    assert arguments == docker_arguments()
    [base] = re.findall(r"^From: (.*)$", DEFINITION, re.M)
    assert {*re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)} == {base}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    files = dict(
        line.replace("{{ MODEL }}", arguments["MODEL"]).split() for line in section("files")
    )
    assert files.keys() == copied_by_docker()
    [installed] = re.findall(r"/opt/panorgan/bin/pip .*", DOCKERFILE)
    assert installed.replace("${", "{{ ").replace("}", " }}") in section("post")


def test_predict_sh_is_a_shell_s():
    script = REPOSITORY / "container/predict.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", script], check=True)


def told(page: str) -> str:
    """The text of a page of the docs, or of a notebook's cells."""
    text = (REPOSITORY / "docs" / page).read_text()
    if page.endswith(".ipynb"):
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


@pytest.mark.parametrize("page", ["predict.md", "quickstart.ipynb"])
def test_each_command_that_is_told_is_one(page):
    commands = re.findall(r"^panorgan .*", told(page).replace("\\\n", ""), re.M)
    assert commands
    for command in commands:
        assert _parser().parse_args(shlex.split(command)[1:]).command
