"""The one reader and writer of tab-separated tables whose rows are taken one by one."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from panorgan.io.writing import write_text
from panorgan.problems import Problem, Problems

Row = Mapping[str, object]

TAB, COMMA = "\t", ","
BETWEEN = {TAB: "tabs", ";": "semicolons", COMMA: "commas", " ": "spaces"}
"""What separates the columns of tables, of ours and of others."""

SPREADSHEETS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
"""How a spreadsheet's own files begin: .xlsx and .ods; .xls."""

COMPUTED = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""How a text begins that a spreadsheet takes for a formula; the last four are the wide forms."""

NUMBER = re.compile(r"[-+]?[\d.,]*")


def why_no_text(text: str) -> str:
    """What is wrong with a name or a remark that stands in tables for people; empty if nothing.

    Such texts come along with data and models of others. They are refused and not changed: they
    have to be found again by what they say.
    """
    if not text.isprintable():
        return "holds characters that cannot be shown"
    if text.startswith(COMPUTED) and not NUMBER.fullmatch(text):
        return f"begins with '{text[0]}': a spreadsheet would take it for a formula"
    return ""


def write_table(path: str | Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows under a header; None becomes an empty field, floats keep their shortest form.

    Raises
    ------
    ValueError
        If a row has a column that the header lacks.
    """
    write_text(path, table_text(columns, rows))


def table_text(columns: Iterable[str], rows: Iterable[Row], separator: str = TAB) -> str:
    """What `write_table` writes, or the same with another separator."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(columns), delimiter=separator, lineterminator="\n", restval=""
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_table(path: str | Path, separator: str = TAB) -> list[dict[str, str]]:
    """Rows of a table as dicts of text, in the file's order.

    Raises
    ------
    Problems
        As `read_rows` does.
    """
    header, rows = read_rows(path, separator)
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_rows(path: str | Path, separator: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, each row as long as the header.

    A field may stand in quotes as spreadsheets save it, quotes within it doubled. Lines that hold
    nothing are left out, wherever they are.

    Parameters
    ----------
    path
        Text whose lines end as those of any system.
    separator
        One of `BETWEEN`.

    Raises
    ------
    Problems
        If the file cannot be read, is no text or empty, has other separators, columns without a
        name or of one name, lines of another length than the header, or a quote that is not closed.
    """
    text = _text(path)
    by = BETWEEN[separator]
    first = text.strip().partition("\n")[0]
    for other, name in BETWEEN.items():
        if other in first and separator not in first:
            cure = f"save it as text with {by} between them"
            raise Problems.one(f"has {name} between its columns", cure, file=path)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    rows, short, before = [], [], 0
    try:
        for row in lines:
            start, before = before + 1, lines.line_num
            # Nobody types both into a field: so these are lines that a quote has swallowed.
            if before > start and any(separator in part and part.splitlines()[1:] for part in row):
                before = start - 1
                raise csv.Error
            if not any(map(str.strip, row)):
                continue
            if not header:
                header = _checked(row, path)
            elif len(row) == len(header):
                rows.append(row)
            else:
                short.append(str(start))
    except csv.Error:
        cause = f"line {before + 1} opens a quote that is not closed at a field's end"
        cure = "close it there and write quotes within it twice, or remove it"
        raise Problems.one(cause, cure, file=path) from None
    if not header:
        raise Problems.one("is empty", f"write the names of its columns, {by} between", file=path)
    if short:
        where = f"{', '.join(short[:5])}{', …' * (len(short) > 5)}"
        what = f"line {where} has" if len(short) == 1 else f"lines {where} have"
        cause = f"{what} not the {len(header)} fields of the header"
        raise Problems.one(cause, f"put {by} between the fields, empty ones too", file=path)
    return header, rows


def _text(path: str | Path) -> str:
    """The file as text, without a byte-order mark."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Problems.one(error.strerror, "check the path", file=path) from None
    if data.startswith(SPREADSHEETS):
        cure = "save it from there as text with tabs between the columns"
        raise Problems.one("is a spreadsheet's own file", cure, file=path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problems.one("is no UTF-8 text", "save it as UTF-8", file=path) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Problems.one(f"has a zero byte in line {line}", "save it as UTF-8 text", file=path)
    return text


def _checked(header: list[str], path: str | Path) -> list[str]:
    """A header, if each of its columns has a name of its own."""
    names = [name.strip() for name in header]
    faults = [
        (f"column {number} has no name", "name it, or remove the column")
        for number, name in enumerate(names, 1)
        if not name
    ]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    faults += [(f"has the column `{name}` twice", "remove one") for name in twice]
    if faults:
        raise Problems(Problem("", str(path), *fault) for fault in faults)
    return header
