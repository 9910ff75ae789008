"""The user's corrections: what they say, and what is wrong with them."""

import pytest
from fault_rows import fault_rows

from panorgan.cases.corrections import ABSENT, ANNOTATED, UNKNOWN, Correction, read_corrections
from panorgan.config.labels import load_labels
from panorgan.problems import Problems

LABELS = load_labels()
STATES = dict.fromkeys(LABELS.values, UNKNOWN) | {1: ANNOTATED, 14: ABSENT}


def table(tmp_path, text):
    path = tmp_path / "corrections.tsv"
    path.write_text(text.replace(" | ", "\t"))
    return path


def faults(tmp_path, text):
    with pytest.raises(Problems) as error:
        read_corrections(table(tmp_path, text), LABELS)
    assert all(problem.cure for problem in error.value.problems)
    return str(error.value)


def test_lines_as_typed(tmp_path):
    path = table(
        tmp_path,
        "case | absent | label | tumour_scope | note\n"
        "a | spleen, 9 | fixed/a.nii.gz | liver | splenectomy\nb |  |  |  | \n",
    )
    found = read_corrections(path, LABELS)
    assert found["a"] == Correction(
        "a",
        absent="spleen, 9",
        label=str(tmp_path / "fixed/a.nii.gz"),
        tumour_scope="liver",
        note="splenectomy",
        file=str(path),
    )
    assert found["a"].states(LABELS) == {3: ABSENT, 9: ABSENT}
    assert found["b"].states(LABELS) == {}
    assert read_corrections(table(tmp_path, "case | label\n"), LABELS) == {}
    absolute = table(tmp_path, "case | label\na | /x/a.nii.gz\n")
    assert read_corrections(absolute, LABELS)["a"].label == "/x/a.nii.gz"


def test_every_fault_is_listed(tmp_path):
    text = faults(
        tmp_path,
        "case | annotated | absent | unknown | tumour_scope\n"
        "a | livr |  |  | \n"
        "b | liver | 1,spleen | 3 | \n"
        "c |  |  |  | tumour\n"
        "d |  |  |  | spleeen\n"
        " | liver |  |  | \n"
        "e |  |  |  | \n"
        "e |  |  |  | \n",
    )
    for part in (
        "a: ",
        "annotated: 'livr' is no class; did you mean 'liver'?",
        "liver is both annotated and absent",
        "spleen is both absent and unknown",
        "tumour_scope: 'tumour' is no organ",
        "tumour_scope: 'spleeen' is no class; did you mean 'spleen'?",
        "has a line without a case",
        "e: ",
        "stands on two lines",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["{a}", "<a>", "$(a)"])
def test_braces_in_a_path_are_refused_as_labels_are_inputs_of_the_workflow(tmp_path, name):
    assert faults(tmp_path, f"case | label\na | fixed/{name}.nii.gz\n") == (
        f"a: {tmp_path}/corrections.tsv: label: 'fixed/{name}.nii.gz' has '{name[0]}' in it; name "
        "or link a path without it: Snakemake, or the shell that submits jobs, would expand it"
    )


def test_header_faults(tmp_path):
    assert "lacks the column case" in faults(tmp_path, "annotated\nliver\n")
    text = faults(tmp_path, "case | anotated\na | liver\n")
    assert "unknown column 'anotated'; did you mean 'annotated'?" in text
    with pytest.raises(Problems, match="does not exist; check `corrections`"):
        read_corrections(tmp_path / "none.tsv", LABELS)


@pytest.mark.fault("corrections-quote-open")
def test_no_line_vanishes_between_two_open_quotes(tmp_path):
    text = faults(tmp_path, 'case | unknown | note\na | 14 | "cyst\nb | 14 | \nc | 14 | "mail\n')
    fault_rows()["corrections-quote-open"].check(text)


def applied(values, scope=None, labelled=True, **fields):
    states, scope, rows = Correction("a", **fields).apply(
        STATES, scope, values, LABELS, labelled=labelled
    )
    changed = {value: state for value, state in states.items() if state != STATES[value]}
    return changed, scope, [(row["what"], row["before"], row["after"]) for row in rows]


def test_states_win():
    assert applied({1: 5}) == ({}, None, [])
    found = applied({1: 5, 3: 2}, annotated="spleen", absent="1", unknown="tumour")
    assert found == (
        {1: ABSENT, 3: ANNOTATED, 14: UNKNOWN},
        None,
        [
            ("liver", ANNOTATED, ABSENT),
            ("spleen", UNKNOWN, ANNOTATED),
            ("tumour", ABSENT, UNKNOWN),
        ],
    )


def test_annotated_without_a_voxel_is_absent():
    found, _, rows = Correction("a", annotated="spleen", note="seen").apply(
        STATES, None, {1: 5}, LABELS
    )
    assert found[3] == ABSENT
    assert rows[0]["note"] == "seen; no voxel of it in the label"


def test_scope_wins_and_ends_with_the_tumour():
    assert applied({}, None, tumour_scope="liver")[1:] == (
        (1,), [("tumour_scope", "everywhere", "liver")]
    )  # fmt: skip
    assert applied({}, (2, 13), tumour_scope="all")[1:] == (
        None, [("tumour_scope", "right_kidney,left_kidney", "everywhere")]
    )  # fmt: skip
    changed, scope, rows = applied({}, (1,), unknown="14")
    assert (changed, scope) == ({14: UNKNOWN}, None)
    assert rows[-1] == ("tumour_scope", "liver", "nowhere")
    assert applied({}, (1,))[1:] == ((1,), [])
    with pytest.raises(
        Problems, match="nobody looked for tumour; add tumour to annotated or absent"
    ):
        applied({}, unknown="tumour", tumour_scope="liver")


def test_without_a_label_nothing_is_annotated():
    with pytest.raises(Problems, match="liver cannot be annotated: the case has no label"):
        applied({}, labelled=False, annotated="liver")
    assert applied({}, labelled=False, absent="spleen")[0] == {3: ABSENT}
