"""Models of others into our model folder, and ours into theirs."""

from collections.abc import Sequence
from pathlib import Path

from panorgan.io.tables import why_no_text
from panorgan.io.writing import new_folder
from panorgan.networks import count_parameters
from panorgan.nnunet.models.folders import ALL, OURS, VERSION_1, Found, find_model
from panorgan.nnunet.models.model import Model, load_model, model_of, save_model
from panorgan.nnunet.models.version1 import read_nnunet1
from panorgan.nnunet.models.version2 import read_nnunet2
from panorgan.nnunet.models.write import write_nnunet2
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
    found = find_model(source)
    if found.kind == OURS:
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
            folder, more = write_nnunet2(model, temporary)
            where = out / folder.relative_to(temporary)
            notes = [*notes, *more]
        else:
            save_model(temporary, model.network, model.plan, model.dataset_json, model.card)
            where = out
    return [f"{where}: {_summary(model)}", *(f"  {note}" for note in notes)]


def _read(found: Found, fold: str | None, classes: Sequence[str] | None) -> tuple[Model, list[str]]:
    """A foreign model, of which one fold is taken."""
    found.check_finished()
    checkpoints = found.checkpoints
    if fold is not None:
        chosen = found.named(fold)
    elif ALL in checkpoints or len(checkpoints) == 1:
        chosen = ALL if ALL in checkpoints else next(iter(checkpoints))
    else:
        cause, cure = "has several folds and not all in one", found.choice
        raise Problems.one(cause, cure, file=found.folder)
    if found.kind == VERSION_1:
        return read_nnunet1(found.folder, chosen, checkpoints[chosen], classes)
    files = read_nnunet2(found.folder, {chosen: checkpoints[chosen]}, classes)
    return model_of(files, found.folder), list(files.notes)


def _checked_names(classes: Sequence[str] | None) -> Sequence[str] | None:
    if classes is not None:
        for name in classes:
            if not name or name in ("background", "ignore") or classes.count(name) > 1:
                cause = f"--classes: '{name}' is empty, reserved or given twice"
                raise WrongOption.one(cause, "give each class a name of its own")
            if fault := why_no_text(name):
                raise WrongOption.one(f"--classes: '{name}' {fault}", "give it another name")
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
