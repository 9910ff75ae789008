"""A training on a disk that becomes full, again and again, until there is enough room."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fault_rows import fault_rows
from toys import checksum, curve, run, write_case

from panorgan.problems import Stop

PAGE, PAGES = 4096, 2000


@pytest.mark.fault("disk-full-training")
def test_it_goes_on_from_what_had_room(tmp_path, small_disk, monkeypatch):
    cases = {}
    for seed, name in enumerate("ab"):
        write_case(tmp_path / "cases", name, seed)
        cases[name] = tmp_path / "cases"
    undisturbed = run(tmp_path / "plenty", cases)
    disk = small_disk(PAGES)
    state = disk / "state"
    said, kept = set(), 0
    for pages in (0, 2, *range(20, 400, 40)):
        leave(disk, pages)
        try:
            model = run(state, cases)
            break
        except Stop as stop:
            (problem,) = stop.problems
        said.add(Path(problem.file).relative_to(state).name)
        fault_rows()["disk-full-training"].check(str(replace(problem, file="checkpoint-0002.pt")))
        assert not list(disk.rglob(".*"))
        found = len(list(state.glob("*.pt")))
        assert found >= kept
        kept = found
    assert "checkpoint-0002.pt" in said
    assert len(said) > 1, said
    assert checksum(model) == checksum(undisturbed)
    assert curve(model) == curve(undisturbed)


def leave(disk, pages):
    """Fill a disk but for some pages."""
    (disk / "filler").write_bytes(b"")
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(max(0, free - pages * PAGE)))
