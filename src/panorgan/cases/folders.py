"""What lies in a folder of volumes: the files that are taken, and all others with the reason."""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from panorgan.io.tables import COMPUTED
from panorgan.problems import Problem, Problems

SUFFIXES = (".nii.gz", ".nii")
IMAGE_ENDING = "_0000"
LONGEST_NAME = 150
"""Characters of a case's name: file systems allow 255, and work in progress adds the name of the
machine, at most 64, a key and an ending."""
NO_VOLUME = re.compile(
    r".+\.(bib|cfg|csv|db|docx?|gif|html?|ini|ipynb|jpe?g|json|log|md5?|pdf|pkl|png|pptx?|pth?|py"
    r"|rst|safetensors|sh|sha256|svg|tex|toml|tsv|txt|xlsx?|xml|ya?ml)"
    r"|changelog|citation|licen[cs]e|md5sums|notice|readme|sha256sums",
    re.IGNORECASE,
)
"""Names that nobody takes for a volume's, so that these files are no matter. Slices of DICOM often
have no ending."""
CHANNEL = re.compile(r"(.+)_(?!0000)\d{4}")

MOVE = "or move it elsewhere"


def volumes_in(
    folder: str | Path, *, below: bool = False, labels: bool = False
) -> tuple[list[Path], list[Problem]]:
    """Volumes of a folder, sorted, and what of it is left out.

    Taken is what is named ``.nii.gz`` or ``.nii``, links included; what it holds is for the reader
    to say. Hidden entries, texts and tables are no matter; all others are left out.

    Parameters
    ----------
    below
        Whether to take volumes of all folders below it too, links followed.
    labels
        Whether they are label maps: these have no channels. In a folder whose name starts with
        ``labels`` they are.

    Returns
    -------
    volumes
    left_out
        A problem for each reason and folder, with the first of the entries and how many they are;
        and for each folder below that cannot be read.

    Raises
    ------
    Problems
        If there is no such folder, or it cannot be read.
    """
    if not os.path.isdir(folder):
        raise Problems.one("is no folder", "check the path", file=folder)
    found: list[Path] = []
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        cause = f"cannot be read: {error.strerror}"
        problem = Problem("", str(error.filename), cause, "check its permissions")
        if not below:
            raise Problems([problem])
        problems.append(problem)

    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        left_out: dict[tuple[str, str], list[str]] = {}
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if name.startswith(".") or real in seen:
                folders.remove(name)
            elif not below:
                folders.remove(name)
                if _may_hold_volumes(os.path.join(place, name)):
                    cause = "it is a folder, and what lies in folders is not taken"
                    left_out.setdefault((cause, f"move its volumes up, {MOVE}"), []).append(name)
            seen.add(real)
        with_channels = not labels and not os.path.basename(place).startswith("labels")
        names = _visible(files)
        beside = {*names} if with_channels else ()
        for name in names:
            if reason := reason_against(name, beside):
                left_out.setdefault(reason, []).append(name)
            elif name.endswith(SUFFIXES):
                found.append(Path(place, name))
        for (why, cure), left in left_out.items():
            count = f" (the first of {len(left)} such entries of its folder)" if left[1:] else ""
            path = os.path.join(place, left[0])
            problems.append(Problem("", path, f"is left out: {why}{count}", cure))
    return sorted(found), problems


def _may_hold_volumes(folder: str) -> bool:
    """Whether something in a folder or below it is neither hidden nor no matter."""
    for _, folders, files in os.walk(folder):
        folders[:] = _visible(folders)
        if any(reason_against(name) or name.endswith(SUFFIXES) for name in _visible(files)):
            return True
    return False


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


def reason_against(name: str, beside: Collection[str] = ()) -> tuple[str, str] | None:
    """Why a file is not taken and what to do about it; None if it is, or is no matter.

    `beside` are the names of its folder where one may be another channel of the same image.
    """
    if NO_VOLUME.fullmatch(name):
        return None
    if not name.isprintable():
        return "its name holds characters that cannot be shown", "rename it"
    if name.startswith(COMPUTED):
        return f"its name begins with '{name[0]}', as a formula or an option does", "rename it"
    if not name.endswith(SUFFIXES):
        if name.lower().endswith(SUFFIXES):
            return "its ending has capital letters", "write it in small ones"
        return "only .nii.gz and .nii are read", f"convert it, {MOVE}"
    case = case_of(name)
    if not case:
        return "its name has no case in it", f"rename it to CASE{IMAGE_ENDING}.nii.gz"
    if len(os.fsencode(case)) > LONGEST_NAME:
        cause = f"the case's name is longer than {LONGEST_NAME} characters"
        return cause, "give it a shorter one"
    channel = CHANNEL.fullmatch(stem_of(name))
    if channel and any(channel[1] + IMAGE_ENDING + suffix in beside for suffix in SUFFIXES):
        cause = f"it is named like a second channel of {channel[1]}, and a CT has one"
        return cause, f"move it elsewhere; a case of its own is named CASE{IMAGE_ENDING}.nii.gz"
    return None


def stem_of(name: str) -> str:
    """A volume's name without its ending."""
    return name.removesuffix(".gz").removesuffix(".nii")


def case_of(name: str) -> str:
    """The case that an image's or a label's name tells."""
    return stem_of(name).removesuffix(IMAGE_ENDING)


def twin_of(path: Path) -> Path | None:
    """The file that holds the same volume, compressed or not, if there is one beside it."""
    twin = path.name.removesuffix(".gz") if path.suffix == ".gz" else f"{path.name}.gz"
    there = path.name.endswith(SUFFIXES) and os.path.exists(path.with_name(twin))
    return path.with_name(twin) if there else None


def cases_in(folder: str | Path, *, labels: bool = True) -> tuple[dict[str, Path], list[Problem]]:
    """Volumes of a folder by case, sorted: ``CASE.nii.gz``, of images also ``CASE_0000.nii.gz``.

    Returns
    -------
    cases
    problems
        What is left out, and files of a case that has one already.

    Raises
    ------
    Problems
        If there is no such folder, or it holds no case.
    """
    volumes, problems = volumes_in(folder, labels=labels)
    found: dict[str, Path] = {}
    for path in volumes:
        case = stem_of(path.name) if labels else case_of(path.name)
        if case in found:
            cause = f"is of the same case as {found[case].name}"
            problems.append(Problem(case, str(path), cause, "remove one of them"))
        found.setdefault(case, path)
    if not found:
        nothing = Problem("", str(folder), "holds no .nii.gz or .nii file", "check the path")
        raise Problems(problems or [nothing])
    return found, problems


def left_out_above(folder: Path, taken: str) -> Iterator[Problem]:
    """Folders named nearly as those of a data set that are not taken, though they hold volumes.

    Parameters
    ----------
    taken
        Pattern of the names of those that are.
    """
    for place in sorted(folder.glob("*")):
        near = re.match("image|label", place.name, re.IGNORECASE)
        misnamed = near and place.is_dir() and not re.fullmatch(taken, place.name)
        if misnamed and _may_hold_volumes(str(place)):
            cause = "is left out: what follows images or labels is Tr…, Val…, Ts… or nothing"
            yield Problem("", str(place), cause, f"rename it, {MOVE}")
