"""Files and folders that appear whole or not at all, also where the disk becomes full."""

import errno
import pickle
import re
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from fault_rows import fault_rows
from safetensors.torch import save_file

from panorgan.io.writing import disk_full, making_folder, new_folder, replacing, write_text
from panorgan.problems import Problem, Problems, Stop


@contextmanager
def files_of_at_most(count):
    """A limit of the size of files, as `ulimit -f` sets it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_text_replaces_another(tmp_path):
    path = tmp_path / "deep/er/a.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]


def failing(block, path):
    """A block that writes something and then fails."""
    with block(path) as temporary:
        if temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
        raise KeyboardInterrupt


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    for block, name in ((replacing, "a.txt"), (replacing, "new/er/b"), (new_folder, "new/c")):
        with pytest.raises(KeyboardInterrupt):
            failing(block, tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_was_there_or_has_something_in_it_stays(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyboardInterrupt):
        failing(making_folder, tmp_path / "there/made/too")
    assert not list((tmp_path / "there").iterdir())
    with making_folder(tmp_path / "there/made"), pytest.raises(KeyboardInterrupt):
        failing(making_folder, tmp_path / "there/made/too")
    assert (tmp_path / "there/made").is_dir()


def a_text(path):
    write_text(path, "x" * 100_000)


def a_folder(path):
    with new_folder(path) as temporary:
        write_text(temporary / "b", "x" * 20_000)
        shutil.copytree(temporary, temporary / "again")
        write_text(temporary / "c", "x" * 50_000)


def weights(path):
    with replacing(path) as temporary:
        save_file({"weights": torch.zeros(30_000)}, temporary)


def a_checkpoint(path):
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"weights": torch.zeros(30_000)}, file)


@pytest.mark.parametrize(
    ("write", "named"), [(a_text, ""), (a_folder, "c"), (weights, ""), (a_checkpoint, "")]
)
def test_a_full_disk_is_a_line_with_the_file_and_the_room(write, named, small_disk):
    disk = small_disk(16)
    with pytest.raises(Stop) as caught:
        write(disk / "deep/a")
    (problem,) = caught.value.problems
    assert problem.file == str(disk / "deep/a" / named)
    assert re.fullmatch(r"no space left on the disk \([\d,]+ bytes free\)", problem.cause)
    assert problem.cure == "free some space and run the same command again"
    assert not list(disk.iterdir())


def test_a_copied_folder_that_has_no_room(small_disk, tmp_path):
    source, disk = tmp_path / "source", small_disk(4)
    source.mkdir()
    (source / "a").write_bytes(bytes(50_000))
    with pytest.raises(Stop, match=r"copy: no space left"), new_folder(disk / "copy") as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    assert not list(disk.iterdir())


@pytest.mark.fault("file-too-large")
def test_a_limit_of_a_files_size(tmp_path):
    with files_of_at_most(1000), pytest.raises(Stop) as caught:
        write_text(tmp_path / "a.txt", "x" * 10_000)
    fault_rows()["file-too-large"].check(str(caught.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota of the disk is used up"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), "no space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.EACCES, "Permission denied"), None),
        (RuntimeError("unexpected pos 704 vs 598"), None),
        (ValueError(28), None),
    ],
)
@pytest.mark.fault("disk-quota")
def test_what_means_that_a_disk_is_full(error, cause, tmp_path):
    found = disk_full(error, tmp_path / "new/file")
    assert (found is None) == (cause is None)
    if cause:
        assert str(found).startswith(f"{tmp_path}/new/file: {cause}")
    if "quota" in str(error):
        fault_rows()["disk-quota"].check(str(found))


def test_an_error_that_hides_a_full_disk(tmp_path):
    def wrapped(hidden):
        try:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                if hidden:
                    raise RuntimeError("said otherwise") from None
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 (as torch does)
        except RuntimeError as error:
            return error

    assert disk_full(wrapped(hidden=False), tmp_path)
    assert disk_full(wrapped(hidden=True), tmp_path) is None


@pytest.mark.parametrize("kind", [replacing, new_folder])
def test_other_errors_name_what_was_to_be_written(kind, tmp_path):
    with pytest.raises(OSError, match="too long") as caught:
        failing(kind, tmp_path / ("a" * 250))
    assert caught.value.filename == str(tmp_path / ("a" * 250))


@pytest.mark.parametrize("kind", [Problems, Stop])
def test_problems_come_from_other_processes_as_they_were(kind):
    error = kind([Problem("b", "f", "is bad", "mend it"), Problem("a", "", "too", "")])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.problems == error.problems
    assert str(again) == str(error)
