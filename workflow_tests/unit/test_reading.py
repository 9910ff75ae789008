"""YAML and JSON as people write them: what is read, and what is refused in which words."""

import json
import os
from itertools import pairwise
from string import ascii_lowercase as LETTERS

import pytest
import yaml

from panorgan.cases.manifest import load_sources
from panorgan.config.labels import config_folder, load_labels
from panorgan.config.reading import read_yaml
from panorgan.config.settings import read_config_file
from panorgan.problems import Problems


def saved(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(read, path) -> str:
    with pytest.raises(Problems) as error:
        read(path)
    return str(error.value).replace(f"{path}: ", "")


@pytest.mark.parametrize("path", sorted(config_folder().glob("*.yaml")), ids=os.path.basename)
def test_what_is_shipped_is_read_as_pyyaml_reads_it(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1\nb: {a: 1}\nc: [{a: 1}, {a: 1}]\n", {"a": 1, "b": {"a": 1}, "c": [{"a": 1}] * 2}),
        ("a: &x {b: 1, c: 1}\nd: {<<: *x, c: 2}\n", {"a": {"b": 1, "c": 1}, "d": {"b": 1, "c": 2}}),
        ("a: &x [1]\nb: *x\n", {"a": [1], "b": [1]}),
        ("1: a\n'1': b\n", {1: "a", "1": "b"}),
        ("\ufeffa: 1\r\n", {"a": 1}),
        ('{"a": 1e-3,\n\t"b": "x\\/y"}', {"a": 0.001, "b": "x/y"}),
        ("", None),
    ],
)
def test_what_is_read(tmp_path, text, content):
    assert read_yaml(saved(tmp_path, text)) == content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\n\na: 3\n", "has the key `a` twice: in line 1 and in line 4; remove one"),
        (
            "a:\n  b: 1\n  c: {d: 1, 'd': 2}\n",
            "has the key `a.c.d` twice: in line 3 and in line 3; remove one",
        ),
        (
            "a:\n- x: 1\n- y: 1\n  y: 1\n",
            "has the key `a.1.y` twice: in line 3 and in line 4; remove one",
        ),
        (
            '{"a": 1,\n\t"b": 2,\n\t"a": 3}',
            "has the key `a` twice: in line 1 and in line 3; remove one",
        ),
        (
            "a: &x\n  b: *x\n",
            "`a.b` contains itself (line 1); write out what it is to hold",
        ),
        (
            "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(LETTERS)),
            "has more than 100,000 parts if its aliases are written out; use fewer",
        ),
        ("a: [1, 2\nb: 3\n", "is no valid YAML: line 2: while parsing a flow sequence of line 1, "),
        ("a:\n\tb: 1\n", "is no valid YAML: line 2: found character '\\t' that cannot start any"),
        ("a: 1\nb: \x07\n", "is no valid YAML: line 2: the character 0x0007 is not allowed"),
        ("a: 1\n--- \nb: 1\n", "is no valid YAML: line 2: expected a single document"),
        ("a: 1\nb: !!x 1\n", "is no valid YAML: line 2: could not determine a constructor"),
        ("a: 2023-13-01\n", "is no valid YAML: month must be in 1..12; mend the value"),
        ("a: !!bool x\n", "is no valid YAML: 'x'; mend the value"),
        ("a: !!timestamp x\n", "is no valid YAML: "),
        ("a: 1\nb: @x\n", "is no valid YAML: line 2: "),
        ("[" * 10_000, "is nested too deeply; write it flatter"),
        (b"a: \xe9\n", "is no UTF-8 text; save it as UTF-8"),
    ],
)
def test_what_is_refused(tmp_path, text, said):
    line = refused(read_yaml, saved(tmp_path, text))
    assert line.startswith(said)
    assert "\n" not in line


def test_tabs_get_their_cure(tmp_path):
    line = refused(read_yaml, saved(tmp_path, "a:\n\tb: 1\n"))
    assert line.endswith("; indent with spaces, not with tabs")


def test_every_key_that_stands_twice_is_named(tmp_path):
    lines = refused(read_config_file, saved(tmp_path, "a: 1\nb: 1\na: 1\nb: 1\n"))
    assert lines.count("twice") == 2


def test_so_are_class_tables_and_sources(tmp_path):
    text = (config_folder() / "labels.yaml").read_text()
    number = 1 + len(text.splitlines())
    path = saved(tmp_path, text + "ignore: 15\n")
    assert "has the key `ignore` twice: in line " in (said := refused(load_labels, path))
    assert f"and in line {number}; remove one" in said
    path = saved(
        tmp_path, "sources:\n  A: {annotated: liver}\n  A: {annotated: spleen}\n", "s.yaml"
    )
    said = refused(lambda path: load_sources(path, load_labels()), path)
    assert said == "has the key `sources.A` twice: in line 2 and in line 3; remove one"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"tolerance_mm": float("inf")},
            "labels.0.tolerance_mm: inf is no good value; it should be a",
        ),
        (
            {"tolerance_mm": 0},
            "labels.0.tolerance_mm: 0 is no good value; it should be greater than 0",
        ),
        (
            {"tolerance_mm": "1e0"},
            "labels.0.tolerance_mm: '1e0' is text to YAML, no number; write 1.0",
        ),
        ({"value": "1"}, "labels.0.value: '1' is text to YAML, no number; write 1"),
        (
            {"colour": "red"},
            "labels.0.colour: 'red' is no colour; write '#' and six of 0-9 and a-f",
        ),
        ({"colour": None}, "labels.0.colour: has no value; set it"),
        ({"color": "#000000"}, "labels.0.color: unknown key; did you mean 'colour'?"),
        (
            {"crop_slices": "yes"},
            "labels.0.crop_slices: 'yes' is no good value; it should be a valid",
        ),
        ({"name": "Liver"}, "labels.0.name: 'Liver' is no class name; use a-z, 0-9 and '_'"),
        ({"title": " "}, "labels.0.title: is empty; write what the class is called in reports"),
        ({"side": "rigth"}, "labels.0.side: 'rigth' is not known; did you mean 'right'?"),
    ],
)
def test_values_of_a_class_that_mean_nothing(tmp_path, change, said):
    table = yaml.safe_load((config_folder() / "labels.yaml").read_text())
    table["labels"][0] |= change
    assert refused(load_labels, saved(tmp_path, yaml.safe_dump(table))).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "A: {annotated: [yes]}",
            "sources.A.annotated: is no list of classes; write [liver, spleen]",
        ),
        ("A: {annotated: }", "sources.A.annotated: is no list of classes"),
        ("A: {annotated: {liver: 1}}", "sources.A.annotated: is no list of classes"),
        ("A: liver", "sources.A: 'liver' is no section; write its keys below it, one a line"),
        ("A: {anotated: liver}", "sources.A.anotated: unknown key; did you mean 'annotated'?"),
    ],
)
def test_sources_that_mean_nothing(tmp_path, text, said):
    path = saved(tmp_path, f"sources:\n  {text}\n")
    assert said in refused(lambda path: load_sources(path, load_labels()), path)


def test_json_is_read_as_snakemake_does(tmp_path):
    path = saved(tmp_path, json.dumps({"student": {"seeds": [1]}}, indent="\t"), "mine.json")
    assert read_config_file(path) == {"student": {"seeds": [1]}}
