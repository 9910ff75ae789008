"""A stamp changes with what a file holds, not with its date."""

import gzip
import os

import pytest

from panorgan.io import stamps as module
from panorgan.io.stamps import read_stamps, stamp, stamps, write_stamps


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(1000), mtime=0))
    return str(path)


def test_a_touched_file_keeps_its_stamp_and_a_changed_one_does_not(volume):
    before = stamp(volume)
    os.utime(volume, (0, 0))
    assert stamp(volume) == before
    size = os.path.getsize(volume)
    with open(volume, "wb") as file:
        file.write(gzip.compress(bytes(999) + b"x", mtime=0)[:size].ljust(size))
    assert stamp(volume) != before


@pytest.mark.parametrize("name", ["a.nii", "empty_end.nii.gz"])
def test_of_other_files_the_date_counts(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"some bytes" + bytes(8))
    before = stamp(str(path))
    os.utime(path, (0, 0))
    assert stamp(str(path)) != before


def test_no_file_has_no_stamp(tmp_path):
    assert stamp(str(tmp_path / "none.nii.gz")) == []
    assert stamps([str(tmp_path / "none.nii.gz")], {}) == {str(tmp_path / "none.nii.gz"): []}


def test_what_was_written_down_is_not_read_again(volume, tmp_path, monkeypatch):
    table = tmp_path / "known.json"
    write_stamps(table, [volume])
    known, before = read_stamps(table), stamp(volume)
    monkeypatch.setattr(module, "stamp", lambda path: pytest.fail(f"{path} was read"))
    assert stamps([volume], known) == {volume: before}
    monkeypatch.undo()
    os.utime(volume, (0, 0))
    assert stamps([volume], known) == {volume: before}
    with open(volume, "wb") as file:
        file.write(gzip.compress(b"other", mtime=0))
    assert stamps([volume], known) != {volume: before}


@pytest.mark.parametrize("text", [None, "{", ""])
def test_notes_that_are_not_whole_are_none(tmp_path, text):
    if text is not None:
        (tmp_path / "known.json").write_text(text)
    assert read_stamps(tmp_path / "known.json") == {}
