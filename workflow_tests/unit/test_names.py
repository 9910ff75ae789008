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
