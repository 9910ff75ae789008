"""The few names that a notebook needs, and that nothing heavy is loaded before they are used."""

import subprocess
import sys

import pytest

import panorgan


@pytest.mark.parametrize("name", panorgan.__all__)
def test_a_name_is_there_and_documented(name):
    assert getattr(panorgan, name).__doc__


def test_another_name_is_none():
    with pytest.raises(AttributeError, match="has no attribute 'segment'"):
        _ = panorgan.segment


def test_importing_the_package_loads_nothing():
    code = "import sys, panorgan; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_arrows_between_packages_point_down():
    """No package imports one that stands above it; see docs/design.md."""
    from pathlib import Path
    from re import MULTILINE, findall

    order = ["cli", "report", "stages", "run", "inference", "nnunet", "networks", "scoring"]
    order += ["fusing", "cases", "io", "config"]
    root = Path(panorgan.__file__).parent
    upward = set()
    for package in order:
        for path in (root / package).rglob("*.py"):
            for other in findall(r"^ *from panorgan\.(\w+)", path.read_text(), MULTILINE):
                if other in order and order.index(other) < order.index(package):
                    upward.add((f"{package}/{path.name}", other))
    assert upward == set()
