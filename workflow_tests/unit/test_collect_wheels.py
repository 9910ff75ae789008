"""Which packages are carried to a machine without network."""

import sys

import collect_wheels
import pytest
from collect_wheels import needed, read_list, usually_there


def carried(there: dict[str, str], python="3.12", machine="x86_64") -> set[str]:
    return set(needed(python, machine, there))


def test_a_machine_with_pytorch_and_the_usual_packages():
    found = carried(usually_there())
    assert {"nnunetv2", "batchgenerators", "blosc2", "snakemake", "pydantic", "pytest"} <= found
    assert "snakemake-executor-plugin-slurm" in found
    # There, and what is required by what is there.
    assert not found & {"torch", "numpy", "scipy", "numba", "llvmlite", "fonttools", "jinja2"}
    # Required by nnU-Net, imported by nobody; and what only those require.
    assert not found & {"simpleitk", "imagecodecs", "timm", "torchvision", "huggingface-hub"}
    assert "panorgan" not in found
    assert not any(name.startswith("nvidia") for name in found)


def test_a_machine_with_pytorch_alone():
    found = carried({"torch": "2.11.0+cu130"})
    assert {"numpy", "scipy", "numba", "llvmlite", "matplotlib", "pandas", "jinja2"} <= found
    assert "torch" not in found


def test_what_is_there_but_too_old_is_carried():
    there = usually_there() | {"numpy": "1.26.4", "scipy": "1.17.1", "nnunetv2": "2.8.1"}
    found = carried(there)
    assert "numpy" in found
    assert not found & {"scipy", "nnunetv2", "batchgeneratorsv2"}
    assert "nnunetv2" in carried(there | {"nnunetv2": "2.6.0"})


@pytest.mark.parametrize(
    ("there", "said"), [({"torch": "2.5.1"}, "has torch 2.5.1"), ({"numpy": "2.4"}, "has no torch")]
)
def test_pytorch_has_to_be_there(there, said):
    with pytest.raises(SystemExit, match=said) as caught:
        carried(there)
    assert "of a version !=2.9.*,>=2.8" in str(caught.value)


def test_each_package_is_pinned():
    pins = read_list(collect_wheels.REPOSITORY / "envs/constraints.txt")
    assert not carried({"torch": "2.11.0"}) - pins.keys()
    assert not carried(usually_there(), "3.11", "aarch64") - pins.keys()


def test_lists_of_pip(tmp_path):
    path = tmp_path / "there.txt"
    path.write_text(
        "# comment\nTorch==2.11.0+cu130\nscikit_image==0.26.0\n-e /somewhere\n\n"
        "numpy @ file:///wheels/numpy-2.4.0.whl\n"
    )
    assert read_list(path) == {"torch": "2.11.0+cu130", "scikit-image": "0.26.0", "numpy": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Package  Version\n-------- -------\ntorch    2.11.0\n", "line 1 is not PACKAGE==VERSION"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, said):
    path = tmp_path / "there.txt"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit, match=said) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", ["3.10", "312"])
def test_only_pythons_that_panorgan_runs_on(tmp_path, monkeypatch, capsys, version):
    given = ["collect_wheels.py", "--out", str(tmp_path / "out"), "--python", version]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit):
        collect_wheels.main()
    assert "choose from" in capsys.readouterr().err


def test_what_pip_says_stands_alone(capfd):
    with pytest.raises(SystemExit, match="the lines above say why"):
        collect_wheels.call(sys.executable, "-m", "pip", "download", "--no-such-option")
    assert "Traceback" not in capfd.readouterr().err


def test_an_existing_folder_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mine").touch()
    monkeypatch.setattr("sys.argv", ["collect_wheels.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="exists already: name another folder"):
        collect_wheels.main()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
