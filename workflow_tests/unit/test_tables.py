"""Tables as people and spreadsheets save them: what is read, and what is refused in which words."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panorgan.io.tables import COMMA, TAB, read_rows, read_table, write_table
from panorgan.problems import Problems

ROWS = [{"case": "c1", "note": 'a "cyst"'}, {"case": "c2", "note": ""}]
PLAIN = 'case\tnote\nc1\ta "cyst"\nc2\t\n'
QUOTED = '"case"\t"note"\n"c1"\t"a ""cyst"""\n"c2"\t""\n'
FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\t"), max_size=12)


def saved(tmp_path, content):
    path = tmp_path / "table.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("text", [PLAIN, QUOTED])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: "\n" + text.replace("\nc", "\n\nc") + "\n \n\n",
        lambda text: text + '\t\n\t\n""\t""\n',  # a spreadsheet's empty rows
    ],
)
def test_saved_by_any_system_or_spreadsheet(tmp_path, text, change):
    assert read_table(saved(tmp_path, change(text))) == ROWS


def test_a_quoted_field_may_hold_a_tab_or_a_line_break_and_a_quote_may_stand_inside_a_field(
    tmp_path,
):
    text = 'case\tnote\nc1\t"see\nmail"\nc2\t"1\t2"\nc3\t5" wide\n'
    assert [row["note"] for row in read_table(saved(tmp_path, text))] == [
        "see\nmail",
        "1\t2",
        '5" wide',
    ]


@given(rows=st.lists(st.fixed_dictionaries({"a": FIELDS, "b": FIELDS}), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "table.tsv"
    write_table(path, ("a", "b"), rows)
    assert read_table(path) == [row for row in rows if row["a"].strip() or row["b"].strip()]


@given(text=st.text(st.sampled_from('ab"\t\n'), max_size=30))
def test_no_line_is_swallowed(tmp_path_factory, text):
    """What is read is what `csv` reads, and has no field in which lines may have vanished."""
    path = tmp_path_factory.mktemp("tables") / "table.tsv"
    path.write_text(text)
    try:
        header, rows = read_rows(path, TAB)
    except Problems:
        return
    assert all(len(row) == len(header) for row in rows)
    assert not [part for row in rows for part in row if "\t" in part and "\n" in part]
    plain = [
        row for row in csv.reader(io.StringIO(text), delimiter="\t") if any(map(str.strip, row))
    ]
    assert [header, *rows] == plain


QUOTE = "opens a quote that is not closed at a field's end; close it there and write quotes within "
QUOTE += "it twice, or remove it"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tb\ta\n1\t2\t3\n", "has the column `a` twice; remove one"),
        ("a\tb\tb \n", "has the column `b` twice; remove one"),
        ("a\t\tb\n1\t2\t3\n", "column 2 has no name; name it, or remove the column"),
        ('a\tb\n1\t2\n3\t"4\n5\t6\n', f"line 3 {QUOTE}"),
        ('a\tb\n1\t"2\n3\t4\n5\t"6\n', f"line 2 {QUOTE}"),
        ('a\tb\n\n1\t"2\n3\t4\n5\t"\n', f"line 3 {QUOTE}"),
        ('a\tb\n1\t"2" and more\n', f"line 2 {QUOTE}"),
        ('a\tb\n1\t"2\r\n3\t4"\r\n', f"line 2 {QUOTE}"),
        (
            "a\tb\n\n1\t2\n3\n",
            "line 4 has not the 2 fields of the header; put tabs between the fields, empty ones "
            "too",
        ),
        ("a\tb\n1\n1\n1\n1\n1\n1\n", "lines 2, 3, 4, 5, 6, … have not the 2 fields of the header"),
        ("a,b\n1,2\n", "has commas between its columns; save it as text with tabs between them"),
        ('"a";"b"\n', "has semicolons between its columns; save it as text with tabs between them"),
        ("a b\n1 2\n", "has spaces between its columns; save it as text with tabs between them"),
        (
            b"PK\x03\x04\x14\x00\x06\x00",
            "is a spreadsheet's own file; save it from there as text with tabs between the columns",
        ),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is a spreadsheet's own file"),
        ("a\tb\n1\t\0\n", "has a zero byte in line 2; save it as UTF-8 text"),
        ("a\tb\n1\t2\n".encode("utf-16"), "is no UTF-8 text; save it as UTF-8"),
        ("\n\n", "is empty; write the names of its columns, tabs between"),
    ],
)
def test_what_is_refused(tmp_path, content, said):
    path = saved(tmp_path, content)
    with pytest.raises(Problems) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: {said}")


def test_all_that_is_wrong_with_a_header_is_said(tmp_path):
    with pytest.raises(Problems) as error:
        read_table(saved(tmp_path, "a\ta\t\tb\tb\n"))
    assert len(error.value.problems) == 3


def test_a_table_of_commas_is_asked_for_commas(tmp_path):
    with pytest.raises(Problems, match="has tabs between its columns; save it as text with commas"):
        read_table(saved(tmp_path, PLAIN), COMMA)
