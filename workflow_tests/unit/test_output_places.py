"""Nothing is written where a model or a run of the workflow lies, whatever the command."""

import pytest

from panorgan.cli import main
from panorgan.cli.places import check_places
from panorgan.problems import Problems
from panorgan.run.layout import Layout

COMMANDS = {
    "predict": ["predict", "-i", "ct", "-m", "model", "-o"],
    "evaluate": ["evaluate", "-p", "p", "-r", "r", "-o"],
    "fuse": ["fuse", "--organs", "o", "-o"],
    "fuse source": ["fuse", "--organs", "o", "-o", "fused", "--source-map"],
    "compare": ["compare", "a", "b", "-o"],
    "convert": ["convert", "model", "-o"],
    "show": ["show", "-i", "ct.nii.gz", "-o"],
    "show run": ["show", "case", "--run", "results/r", "-o"],
    "init": ["init", "data", "-o"],
}
PLACES = {
    "models/ours": "is a model's folder",
    "models/ours/new": "lies in models/ours, a model's folder",
    "models/nnunet2/fold_0/new": "lies in models/nnunet2, a model's folder",
    "models/nnunet1/all/new": "lies in models/nnunet1, a model's folder",
    "results/r/scores": "lies in results/r, a run of the workflow",
    "results/r/round-1/fusion/stage2/unlabelled-00": "lies in results/r, a run of the workflow",
    "results/old/x/y.png": "lies in results/old, a run of the workflow",
    "here/new": "lies in results/r, a run of the workflow",
}


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Models of all kinds, a run, another without its store, and a link into a run."""
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    touch(models / "ours/plans.json", models / "ours/weights.safetensors")
    touch(models / "nnunet2/plans.json", models / "nnunet2/fold_0/checkpoint_final.pth")
    touch(models / "nnunet1/plans.pkl", models / "nnunet1/all/model_final_checkpoint.model")
    run, old = tmp_path / "results/r", Layout("old")
    touch(run / ".store/cases/x", run / "logs/x", run / "round-1/fusion/stage2/labelled-00/b")
    touch(tmp_path / old.case_list, tmp_path / old.class_table)
    (tmp_path / "here").symlink_to("results/r/round-1")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_it_is_refused_in_a_line_and_left_as_it_was(command, place, places, capsys):
    before = sorted(places.rglob("*"))
    status = main([*COMMANDS[command], place])
    said = capsys.readouterr().err
    if said == f"{place}: exists already; name another with -o\n":
        assert (places / place).exists()
    else:
        cure = "into which only what made it writes; name a place outside of it"
        assert said == f"{place}: {PLACES[place]}, {cure}\n"
    assert status == 1
    assert sorted(places.rglob("*")) == before


def test_a_picture_goes_into_the_current_folder(places, monkeypatch, capsys):
    monkeypatch.chdir(places / "results/r/round-1")
    assert main(["show", "case", "--run", ".."]) == 1
    assert "a run of the workflow, into which only what made it writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", ["new", "results", "results/new", "models", "models/new", "data/cases.tsv", "."]
)
def test_elsewhere_it_is_the_users(place, places):
    touch(places / "data/plans.json", places / "data/logs/x")
    check_places(places / place, None)


def test_every_place_is_looked_at(places):
    with pytest.raises(Problems) as caught:
        check_places(places / "results/r/a", None, places / "models/ours/b")
    assert len(caught.value.problems) == 2
