"""The one reader and writer of tables: tab-separated, and comma-separated ones of scores."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from panorgan.problems import Problems

Row = Mapping[str, object]
Parsed = TypeVar("Parsed")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows under a header; None becomes an empty field, floats keep their shortest form.

    Raises
    ------
    ValueError
        If a row has a column that the header lacks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Rows of a table as dicts of text, in the file's order.

    Raises
    ------
    Problems
        If the file cannot be read, is no UTF-8 or has a row of another length than its header.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Problems.one(error.strerror, "check the path", file=path) from None
    except UnicodeDecodeError:
        raise Problems.one("is no UTF-8 text", "save it as UTF-8", file=path) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            count = len(reader.fieldnames)
            cause = f"line {reader.line_num} does not have {count} tab-separated fields"
            raise Problems.one(cause, "mend the line", file=path)
        rows.append(row)
    return rows


def write_csv(path: str | Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows under a header, with commas between the fields.

    Raises
    ------
    ValueError
        If a row has a column that the header lacks.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(
    path: str | Path,
    columns: Iterable[str],
    parse: Callable[[Mapping[str, str]], Parsed],
    *,
    kind: str,
    name: str,
) -> list[Parsed]:
    """Rows of a table that `write_csv` wrote.

    Parameters
    ----------
    path, columns
        As for `write_csv`.
    parse
        Makes of a row what is wanted; by KeyError, ValueError or TypeError it says that it cannot.
    kind, name
        What such a table holds and is called, for the user.

    Raises
    ------
    Problems
        If the file cannot be read or is no such table.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return [parse(row) for row in csv.DictReader(io.StringIO(text))]
    except OSError as error:
        raise Problems.one(error.strerror, "check the path", file=path) from None
    except (KeyError, ValueError, TypeError):  # no UTF-8 is a ValueError too
        cause = f"is no table of {kind} with the columns {', '.join(columns)}"
        raise Problems.one(cause, f"give a {name} that panorgan wrote", file=path) from None
