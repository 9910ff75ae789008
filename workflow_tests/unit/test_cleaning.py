"""Preprocessed data go once their networks are trained: all of them, and nothing else."""

from pathlib import Path

import pytest

from panorgan.problems import Problems
from panorgan.run.layout import beside
from panorgan.run.store import Result, ShardOutput, Work, exclusive, run_shard
from panorgan.stages.cleaning import free_preprocessed

ROOT = Path("results/r")
DATA, OTHER, MODEL = ROOT / "net/data", ROOT / "net/labels", ROOT / "net/seed-0/model"
BYTES = 5000


@pytest.fixture(autouse=True)
def _run(tmp_path, monkeypatch):
    """A run with two shards of a trained network's data, and one of another stage."""
    monkeypatch.chdir(tmp_path)
    for folder in (DATA / "train-00", DATA / "train-01", OTHER / "train-00"):
        make_shard(folder)
    for folder in (MODEL, beside(MODEL, ".store") / "key"):
        folder.mkdir(parents=True)
    MODEL.with_suffix(".tsv").write_text("model\n")


def make_shard(folder: Path) -> str:
    """Compute two cases and publish them; what was said."""

    def compute(case: str, place: Path) -> Result:
        (place / f"{case}.b2nd").write_bytes(bytes(BYTES))
        return Result()

    said = []
    out = ShardOutput(beside(folder, ".store"), folder.with_suffix(".tsv"), folder)
    run_shard([Work("a", {}), Work("b", {})], compute, out, parameters={}, say=said.append)
    return said[-1]


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def test_data_and_their_copies_in_the_store_go_and_nothing_else():
    tables = {path: path.read_bytes() for path in ROOT.rglob("*.tsv")}
    others = files(OTHER, beside(OTHER, ".store"))
    said = []
    free_preprocessed({str(DATA): [str(MODEL)]}, said.append)
    assert not files(beside(DATA, ".store"))
    assert not any(path.is_dir() for path in DATA.iterdir())
    assert {path: path.read_bytes() for path in ROOT.rglob("*.tsv")} == tables
    assert files(OTHER, beside(OTHER, ".store")) == others
    assert MODEL.is_dir()
    assert make_shard(DATA / "train-00").startswith("2 computed")
    assert make_shard(OTHER / "train-00").startswith("0 computed, 2 reused")


def test_it_says_how_much_it_freed_and_a_linked_file_counts_once():
    said = []
    journals = beside(DATA, ".store").rglob("journal.jsonl")
    linked = 4 * BYTES + sum(path.stat().st_size for path in journals)
    free_preprocessed({str(DATA): [str(MODEL)]}, said.append)
    assert said == [f"{linked / 1e9:.3g} GB of preprocessed data removed"]
    free_preprocessed({str(DATA): [str(MODEL)]}, said.append)
    assert said[-1] == "0 GB of preprocessed data removed"


def test_what_an_interrupted_removal_left_goes_too():
    (DATA / "train-00").rename(DATA / ".train-00.tmp")
    make_shard(DATA / "train-00")
    free_preprocessed({str(DATA): [str(MODEL)]})
    assert not any(path.is_dir() for path in DATA.iterdir())


def test_data_of_an_untrained_network_stay_and_the_others_go():
    untrained = ROOT / "net/seed-1/model"
    before = files(OTHER, beside(OTHER, ".store"))
    with pytest.raises(Problems, match="not trained yet") as error:
        free_preprocessed({str(OTHER): [str(MODEL), str(untrained)], str(DATA): [str(MODEL)]})
    (problem,) = error.value.problems
    assert problem.file == str(untrained)
    assert files(OTHER, beside(OTHER, ".store")) == before
    assert not files(beside(DATA, ".store"))


def test_data_that_a_training_reads_stay():
    before = files(DATA, beside(DATA, ".store"))
    with (
        exclusive(beside(MODEL, ".store") / "another-key"),
        pytest.raises(Problems, match="training here"),
    ):
        free_preprocessed({str(DATA): [str(MODEL)]})
    assert files(DATA, beside(DATA, ".store")) == before
    free_preprocessed({str(DATA): [str(MODEL)]})
    assert not files(DATA / "train-00", beside(DATA, ".store"))
