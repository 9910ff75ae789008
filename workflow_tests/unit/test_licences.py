"""Licences of what is installed: a page says them; nothing that is always needed is copyleft."""

from importlib.metadata import distribution

import licences
import pytest
from collect_wheels import read_list


@pytest.mark.parametrize("part", ["", "predict"])
def test_nothing_that_predicts_is_copyleft(part):
    found = {name: licences.licence_of(distribution(name)) for name in licences.needed(part)}
    assert {"numpy", "nibabel", "numba"} <= found.keys()
    assert not {name: said for name, said in found.items() if licences.COPYLEFT.search(said)}
    assert all(found.values())


@pytest.mark.parametrize(
    "said",
    ["GPL-3.0", "LGPL-3.0-or-later", "AGPL-3.0-only", "MPL-2.0 AND MIT", "Apache-2.0 OR GPL-2.0"],
)
def test_what_is_copyleft_is_known(said):
    assert licences.COPYLEFT.search(said)


def test_the_page_lists_all_that_is_pinned():
    page = licences.PAGE.read_text(encoding="utf-8")
    pins = read_list(licences.REPOSITORY / "envs/constraints.txt")
    for name, version in pins.items():
        assert f"| {name} | {version} | " in page
    # Which part is the first to need one differs from Python to Python.
    for *facts, _ in licences.rows():
        assert f"| {' | '.join(facts)} |" in page
