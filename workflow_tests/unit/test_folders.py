"""What is taken of a folder of volumes, and what is said of all that is not."""

import os
from pathlib import Path

import pytest

from panorgan.cases.folders import LONGEST_NAME, cases_in, reason_against, twin_of, volumes_in
from panorgan.problems import Problem, Problems

LONG = "L" * LONGEST_NAME
NOT_READ = "is left out: only .nii.gz and .nii are read"
A_FOLDER = "is left out: it is a folder, and what lies in folders is not taken"


def fill(folder: Path, *names: str) -> Path:
    """Empty files; a name that ends in a slash is a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if name.endswith("/") else place.touch()
    return folder


def scanned(folder: Path, **options):
    """Names of the volumes, and (name, cause) of what is left out."""
    volumes, left_out = volumes_in(folder, **options)
    assert all(problem.cure and "\n" not in str(problem) for problem in left_out)
    found = [str(path.relative_to(folder)) for path in volumes]
    return found, [(os.path.relpath(p.file, folder), p.cause) for p in left_out]


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "a.nii", "a_0000.nii.gz", "ä ö.nii.gz", f"{LONG}_0000.nii.gz", "a.b.nii"]
)
def test_volumes_are_taken(tmp_path, name):
    assert scanned(fill(tmp_path, name)) == ([name], [])
    assert reason_against(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._a.nii.gz", ".a.mha", ".store/a.nii.gz", "README", "license", "notes.TXT"),
        *("report.json", "cases.csv", "a.nii.gz.md5", "picture.png", "empty/", "tables/x.csv"),
        *("deep/er/readme.md", "deep/.hidden/a.nii.gz", "__MACOSX/._a.nii.gz"),
    ],
)
def test_what_is_hidden_or_no_volume_is_no_matter(tmp_path, name):
    assert scanned(fill(tmp_path, "z.nii.gz", name)) == (["z.nii.gz"], [])
    assert scanned(tmp_path, below=True) == (["z.nii.gz"], [])


@pytest.mark.parametrize(
    ("name", "first", "cause"),
    [
        *((name, name, NOT_READ) for name in ("b.mha", "b.seg.nrrd", "b.dcm", "b.hdr", "b.img")),
        *((name, name, NOT_READ) for name in ("b.mgz", "b.nii.gz.part", "b.nii.zip", "IM0001")),
        ("b.NII.GZ", "b.NII.GZ", "is left out: its ending has capital letters"),
        ("b.nii.GZ", "b.nii.GZ", "is left out: its ending has capital letters"),
        ("part2/b.nii.gz", "part2", A_FOLDER),
        ("b.nii/b.nii", "b.nii", A_FOLDER),
        ("series/one/IM0001", "series", A_FOLDER),
        (
            "b\nb.nii.gz",
            "b\nb.nii.gz",
            "is left out: its name holds characters that cannot be shown",
        ),
        ("_0000.nii.gz", "_0000.nii.gz", "is left out: its name has no case in it"),
        (
            f"L{LONG}.nii.gz",
            f"L{LONG}.nii.gz",
            f"is left out: the case's name is longer than {LONGEST_NAME} characters",
        ),
        (
            "z_0001.nii.gz",
            "z_0001.nii.gz",
            "is left out: it is named like a second channel of z, and a CT has one",
        ),
    ],
)
def test_what_could_be_a_case_is_named_with_its_reason(tmp_path, name, first, cause):
    assert scanned(fill(tmp_path, "z_0000.nii.gz", name)) == (["z_0000.nii.gz"], [(first, cause)])


def test_names_that_are_no_text(tmp_path):
    place = os.fsencode(tmp_path) + b"/a\xff.nii.gz"
    open(place, "w").close()
    _, (problem,) = volumes_in(tmp_path)
    assert str(problem).endswith(
        "a\\udcff.nii.gz: is left out: its name holds characters that cannot be shown; rename it"
    )


def test_left_out_entries_are_counted_by_reason(tmp_path):
    fill(tmp_path, "c.mha", "b.mha", "d.dcm", "e.NII", "old/x.nii.gz", "new/x.nii.gz", "a.nii")
    assert scanned(tmp_path) == (
        ["a.nii"],
        [
            ("new", f"{A_FOLDER} (the first of 2 such entries of its folder)"),
            ("b.mha", f"{NOT_READ} (the first of 3 such entries of its folder)"),
            ("e.NII", "is left out: its ending has capital letters"),
        ],
    )
    # With all that lies below it, too.
    assert scanned(tmp_path, below=True)[0] == ["a.nii", "new/x.nii.gz", "old/x.nii.gz"]


def test_numbers_of_label_maps_are_no_channels(tmp_path):
    names = ["z_0000.nii.gz", "z_0001.nii.gz"]
    assert scanned(fill(tmp_path / "labelsTr", *names)) == (names, [])
    assert scanned(fill(tmp_path / "masks", *names), labels=True) == (names, [])
    # Of images without channels in their names a case is no other's channel.
    names = ["case_0001.nii.gz", "case_0002.nii.gz"]
    assert scanned(fill(tmp_path / "imagesTr", *names)) == (names, [])


def test_a_folder_that_is_none(tmp_path):
    for place in (tmp_path / "nothing", fill(tmp_path, "a.nii") / "a.nii"):
        with pytest.raises(Problems, match="is no folder; check the path"):
            volumes_in(place)


def test_twins(tmp_path):
    fill(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "c.nii", "d", "d.gz")
    twins = {path.name: twin_of(path) for path in sorted(tmp_path.iterdir())}
    assert {name: twin.name for name, twin in twins.items() if twin} == {
        "a.nii": "a.nii.gz",
        "a.nii.gz": "a.nii",
    }


def test_cases_of_a_folder(tmp_path):
    fill(tmp_path, "b.nii", "a_0000.nii.gz")
    found, problems = cases_in(tmp_path, labels=False)
    assert {case: path.name for case, path in found.items()} == {
        "a": "a_0000.nii.gz",
        "b": "b.nii",
    }
    assert problems == []
    assert [*cases_in(tmp_path)[0]] == ["a_0000", "b"]


def test_two_files_of_a_case(tmp_path):
    fill(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "c.mha")
    found, problems = cases_in(tmp_path)
    assert [*found] == ["a", "b"]
    mha, twin = problems
    assert mha.cause == NOT_READ
    assert twin == Problem(
        "a", str(tmp_path / "a.nii.gz"), "is of the same case as a.nii", "remove one of them"
    )


@pytest.mark.parametrize(
    ("names", "cause"), [(["a.txt"], "holds no .nii.gz or .nii file"), (["a.mha"], NOT_READ)]
)
def test_folders_without_cases(tmp_path, names, cause):
    with pytest.raises(Problems) as error:
        cases_in(fill(tmp_path, *names))
    assert [problem.cause for problem in error.value.problems] == [cause]
