"""The last lines on the terminal: scores by class, lesions, and where the report is."""

from collections.abc import Mapping, Sequence
from typing import Any

from panorgan.config.labels import Labels
from panorgan.io.formats import MISSING, interval, percent
from panorgan.report.inputs import SYNTHETIC, TEACHER, Gate, Student
from panorgan.scoring.bootstrap import TOO_FEW
from panorgan.scoring.lesions import detection_text
from panorgan.scoring.scores import remarks, score_rows

FREE_NOTE = "a tumour-free case counts 100 for the tumour if none is predicted, else 0"


def summary_text(
    config: Mapping[str, Any],
    students: Sequence[Student],
    gates: Sequence[Gate],
    labels: Labels,
    paths: Sequence[str],
) -> str:
    """The teacher's false tumours and scores for the terminal, and where the report is."""
    lines = [f"run {config['run']}" + (f" ({SYNTHETIC})" if config["phantom"] else "")]
    lines += [gate.summary["text"][0] for gate in gates if gate.origin == TEACHER]
    for student in students:
        lines += ["", f"student {student.title}", *student_lines(student, labels)]
    if any(
        student.summaries[split]["tumour"]["tumour_free"]["cases"]
        for student in students
        for split in student.scored
    ):
        lines += ["", FREE_NOTE]
    return "\n".join([*lines, "", *paths, ""])


def student_lines(student: Student, labels: Labels) -> list[str]:
    """A student's scores: a line a class, then intervals and lesions, a line a split each."""
    if not student.scored:
        return ["no class is known in any validation or test case: no scores"]
    scored = {split: student.summaries[split] for split in student.scored}
    rows = score_rows(labels, scored.values())
    width = max(len(title) for title, *_ in rows)
    heads = (f"{split}, cases: {summary['cases']}" for split, summary in scored.items())
    lines = [
        " " * width + "".join(f"{head:>24}" for head in heads),
        " " * width + f"{'DSC %':>9}{'NSD %':>8}{'cases':>7}" * len(scored),
    ]
    for title, _, pick in rows:
        cells = "".join(
            f"{percent(cell['dsc']):>9}{percent(cell['nsd']):>8}{cell.get('cases', ''):>7}"
            for cell in map(pick, scored.values())
        )
        lines.append(f"{title:{width}}{cells}".rstrip())
    lines += [
        f"{split}: {text}" for split, summary in scored.items() for text in remarks(summary, labels)
    ]
    lines += [
        f"95 % intervals of DSC, {split}: {text}"
        for split, summary in scored.items()
        if (text := _intervals(summary))
    ]
    lines += [
        f"lesions, {split}: {detection_text(summary['lesions'])}"
        for split, summary in scored.items()
        if summary["lesions"]
    ]
    return lines


def _intervals(summary: Mapping[str, Any]) -> str:
    parts = {"organs": summary["organs"], "all": summary["all"]}
    parts["tumour, if any"] = summary["tumour"]["positive"]
    known = {
        name: found["dsc_interval"] for name, found in parts.items() if found["dsc"] is not None
    }
    if not any(known.values()):
        return f"{MISSING}, {TOO_FEW}" if known else ""
    texts = [f"{name} {interval(ends)}" for name, ends in known.items() if interval(ends)]
    return ", ".join(texts) + f" ({MISSING}: {TOO_FEW})" * (None in known.values())
