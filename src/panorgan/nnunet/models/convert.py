"""Models of others into our model folder, and ours into theirs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from panorgan.io.writing import new_folder
from panorgan.networks import count_parameters
from panorgan.nnunet.models import version1, version2
from panorgan.nnunet.models.model import PLANS, WEIGHTS, Model, load_model, save_model
from panorgan.nnunet.models.pickles import DAMAGED
from panorgan.problems import Problems, WrongOption


def convert(
    source: Path,
    out: Path,
    *,
    to: str = "panorgan",
    fold: str | None = None,
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Write a model in another form.

    Parameters
    ----------
    source
        A model folder of ours, of nnU-Net 1 (plans.pkl) or of nnU-Net 2 (plans.json), a fold's
        folder in one, or a folder that holds exactly one of these.
    out
        A new folder; it appears whole or not at all.
    to
        ``panorgan``: our model folder; ``nnunet``: what stock nnU-Net 2 reads.
    fold
        Which of a foreign model's folds; None takes ``all``, else the only one.
    classes
        Names of a foreign model's outputs 1, 2, …, instead of its own.

    Returns
    -------
    list of str
        What was made, for a person.

    Raises
    ------
    Problems
        If the source is damaged or no model that can be had in that form, or `out` exists.
    """
    if out.exists():
        raise Problems.one("exists already", "name another with -o", file=out)
    found = _find(source)
    if found.read is None:
        if to == "panorgan":
            raise Problems.one("is a model of panorgan already", "say --to nnunet", file=source)
        if fold is not None or classes is not None:
            cause = "is a model of panorgan, which has one set of weights and names its classes"
            raise Problems.one(cause, "leave out --fold and --classes", file=source)
        model, notes = load_model(found.folder), []
    else:
        model, notes = _read(found, fold, _checked_names(classes))
    with new_folder(out) as temporary:
        if to == "nnunet":
            folder, more = version2.write_nnunet2(model, temporary)
            where = out / folder.relative_to(temporary)
            notes = [*notes, *more]
        else:
            save_model(temporary, model.network, model.plan, model.dataset_json, model.card)
            where = out
    return [f"{where}: {_summary(model)}", *(f"  {note}" for note in notes)]


Reader = Callable[[Path, str, Path, Sequence[str] | None], tuple[Model, list[str]]]


@dataclass(frozen=True)
class _Found:
    """A model folder: how it is read (None: it is ours), and a foreign one's checkpoints."""

    folder: Path
    read: Reader | None = None
    checkpoints: dict[str, Path] | None = None
    """By fold; a fold that was not finished is not there."""
    expected: str = ""
    """Name of a checkpoint."""


def _find(source: Path) -> _Found:
    if not source.is_dir():
        raise Problems.one("there is no such model folder", "check the path", file=source)
    if found := _at(source):
        return found
    # A fold's folder: only this fold.
    if (above := _at(source.resolve().parent)) and above.checkpoints:
        only = {
            name: path
            for name, path in above.checkpoints.items()
            if path.parent == source.resolve()
        }
        if only:
            return _Found(above.folder, above.read, only, above.expected)
    places = [
        path.parent
        for depth in ("*", "*/*", "*/*/*")
        for name in (PLANS, version1.PLANS)
        for path in source.glob(f"{depth}/{name}")
        # A run's plans lie beside its models too.
        if name != PLANS or (path.parent / WEIGHTS).is_file() or any(path.parent.glob("fold_*"))
    ]
    if not places:
        cause = "holds no model of panorgan, nnU-Net 2 or nnU-Net 1"
        raise Problems.one(cause, "name the folder of a trained model", file=source)
    if len(places) > 1:
        listed = ", ".join(str(place.relative_to(source)) for place in sorted(places))
        raise Problems.one(f"holds several models: {listed}", "name one of them", file=source)
    return _at(places[0])


def _at(folder: Path) -> _Found | None:
    """The model whose plan lies right in a folder."""
    if (folder / version1.PLANS).is_file():
        found = _checkpoints(folder, version1.CHECKPOINT)
        return _Found(folder, version1.read_nnunet1, found, version1.CHECKPOINT)
    if not (folder / PLANS).is_file() and not (folder / WEIGHTS).is_file():
        return None
    if (folder / WEIGHTS).is_file() or not any(folder.glob("fold_*")):
        return _Found(folder)
    found = _checkpoints(folder, version2.CHECKPOINT)
    return _Found(folder, version2.read_nnunet2, found, version2.CHECKPOINT)


def _checkpoints(folder: Path, name: str) -> dict[str, Path]:
    """A fold's final checkpoint by the fold's name: all, 0, 1, …"""
    found = sorted([*folder.glob(f"fold_*/{name}"), *folder.glob(f"all/{name}")])
    if not found and (folder / name).is_file():
        return {"all": folder / name}
    return {path.parent.name.removeprefix("fold_"): path for path in found}


def _read(
    found: _Found, fold: str | None, classes: Sequence[str] | None
) -> tuple[Model, list[str]]:
    checkpoints = found.checkpoints
    if not checkpoints:
        cause = f"no fold of it has a {found.expected}"
        cure = "finish its training, or copy the whole model folder again"
        raise Problems.one(cause, cure, file=found.folder)
    chosen = fold.removeprefix("fold_") if fold is not None else None
    if chosen is None and ("all" in checkpoints or len(checkpoints) == 1):
        chosen = "all" if "all" in checkpoints else next(iter(checkpoints))
    if chosen not in checkpoints:
        cause = f"has no fold {chosen}" if chosen else "has several folds and not all in one"
        raise Problems.one(cause, f"say --fold {' or '.join(checkpoints)}", file=found.folder)
    try:
        return found.read(found.folder, chosen, checkpoints[chosen], classes)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        cause = f"is damaged, or no model of nnU-Net ({type(error).__name__}: {reason})"
        raise Problems.one(cause, DAMAGED, file=found.folder) from None


def _checked_names(classes: Sequence[str] | None) -> Sequence[str] | None:
    if classes is not None:
        for name in classes:
            if not name or name in ("background", "ignore") or classes.count(name) > 1:
                cause = f"--classes: '{name}' is empty, reserved or given twice"
                raise WrongOption.one(cause, "give each class a name of its own")
    return classes


def _summary(model: Model) -> str:
    classes = model.plan["panorgan"]["classes"]
    listed = ", ".join(f"{value} {name}" for value, name in enumerate(classes, 1))
    network = type(model.network).__name__
    orientation = model.plan["panorgan"]["orientation"]
    return (
        f"{network} of {count_parameters(model.network):,} parameters, axes {orientation}; "
        f"classes {listed}"
    )
