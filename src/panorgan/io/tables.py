"""The one reader and writer of tab-separated tables whose rows are taken one by one."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from panorgan.problems import Problems

Row = Mapping[str, object]


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
