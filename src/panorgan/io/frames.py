"""Tables that are grouped, joined or summarised: typed frames, made, read and written here alone.

In a file an empty field is a number that is not known (NaN in a frame), and what is true or not
is ``yes`` or ``no``. Only scoring and the report import this: what plans or fuses needs no pandas.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from panorgan.io.tables import COMMA, TAB, read_rows
from panorgan.io.writing import write_text
from panorgan.problems import Problems


@dataclass(frozen=True)
class Schema:
    """The columns of a kind of table.

    Attributes
    ----------
    kind, name
        What such a table holds and is called, for the user.
    columns
        Type of each: str, int, float or bool. Others in a file are left out.
    decimals
        Of numbers that are written with a fixed number of them; others keep their shortest form.
    values
        Those that a column may have.
    """

    kind: str
    name: str
    columns: Mapping[str, type]
    decimals: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def frame(self, rows: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
        """Rows as a frame; None is NaN, or an empty text."""
        texts = {name: "" for name, kind in self.columns.items() if kind is str}
        frame = pd.DataFrame(list(rows), columns=list(self.columns), dtype=object)
        return frame.fillna(texts).astype(dict(self.columns))

    def read(self, *paths: str | Path) -> pd.DataFrame:
        """The rows of some tables, one table after the other; TSV or CSV, as their names say.

        Raises
        ------
        Problems
            If a file cannot be read or is no such table.
        """
        return pd.concat([self.frame(), *map(self._read, paths)], ignore_index=True)

    def _read(self, path: str | Path) -> pd.DataFrame:
        header, rows = read_rows(path, _separator(path))
        try:
            found = pd.DataFrame(rows, columns=header, dtype=object)[list(self.columns)]
            for name, kind in self.columns.items():
                found[name] = _typed(found[name], kind)
            if not all(found[name].isin(values).all() for name, values in self.values.items()):
                raise ValueError(path)
        except (KeyError, ValueError):
            cause = f"is no table of {self.kind} with the columns {', '.join(self.columns)}"
            cure = f"give a {self.name} that this version of panorgan wrote"
            raise Problems.one(cause, cure, file=path) from None
        return found

    def write(self, path: str | Path, frame: pd.DataFrame) -> None:
        """Write a frame, whole or not at all."""
        texts = {
            name: frame[name].map(f"{{:.{digits}f}}".format, na_action="ignore")
            for name, digits in self.decimals.items()
        }
        texts |= {
            name: frame[name].map({True: "yes", False: "no"})
            for name, kind in self.columns.items()
            if kind is bool
        }
        text = frame.assign(**texts).to_csv(
            sep=_separator(path), columns=list(self.columns), index=False, lineterminator="\n"
        )
        write_text(path, text)


def _separator(path: str | Path) -> str:
    return TAB if Path(path).suffix == ".tsv" else COMMA


def _typed(texts: pd.Series, kind: type) -> pd.Series:
    """A column of a file in its type; ValueError if a text is none of it."""
    if kind is bool:
        if not texts.isin(["yes", "no"]).all():
            raise ValueError(texts.name)
        return texts == "yes"
    if kind is float:
        numbers = texts.where(texts != "", "nan").astype(float)
        if (numbers.isna() != (texts == "")).any() or np.isinf(numbers).any():
            raise ValueError(texts.name)
        return numbers
    return texts.astype(kind)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts of plain values; what is missing is None."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
