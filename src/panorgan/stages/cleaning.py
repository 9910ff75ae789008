"""Data that no step of the run needs any more."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from panorgan.problems import Problem, Problems
from panorgan.run.layout import beside
from panorgan.run.store import exclusive


def free_preprocessed(
    data: Mapping[str, Sequence[str]], say: Callable[[str], None] = print
) -> None:
    """Remove the preprocessed data of trained networks, where they are published and stored.

    The tables stay. Snakemake makes the data again when a training needs them, and only then.

    Parameters
    ----------
    data
        For each folder of preprocessed data (a folder a shard in it) the folders of all models
        that learn from it.

    Raises
    ------
    Problems
        For each model that is not trained yet or being trained, after the data of all others are
        removed.
    """
    problems: list[Problem] = []
    freed = 0
    for folder, models in data.items():
        try:
            freed += _free(Path(folder), [Path(model) for model in models])
        except Problems as error:
            problems += error.problems
    say(f"{freed / 1e9:.3g} GB of preprocessed data removed")
    if problems:
        raise Problems(problems)


def _free(folder: Path, models: Sequence[Path]) -> int:
    """Remove one network's data; bytes that are freed."""
    if missing := [model for model in models if not model.with_suffix(".tsv").exists()]:
        cause = f"not trained yet: the data in {folder} stay"
        raise Problems.one(cause, "train it first, or take it out of the config", file=missing[0])
    with ExitStack() as locks:
        for model in models:
            for state in sorted(beside(model, ".store").glob("*/")):
                locks.enter_context(exclusive(state))
        store = beside(folder, ".store")
        shards = sorted(folder.glob("*/"))  # hidden ones, of a killed job, first
        size = _disk_use([store, *shards])
        for shard in shards:
            if not shard.name.startswith("."):
                # What is half removed must not pass for a shard's output.
                shard = shard.rename(shard.with_name(f".{shard.name}.tmp"))
            shutil.rmtree(shard)
        shutil.rmtree(store, ignore_errors=True)
    return size


def _disk_use(folders: Sequence[Path]) -> int:
    """Bytes of all files below some folders; several names of a file count once."""
    files = (path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
