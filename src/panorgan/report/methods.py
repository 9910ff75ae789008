"""The methods text of the run, from its config and what its files record."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panorgan.cases.manifest import Entry
from panorgan.cases.selection import needs_tumour
from panorgan.config.labels import Labels
from panorgan.config.settings import load_config
from panorgan.io.tables import read_table
from panorgan.report.inputs import Student, read_json, read_rows
from panorgan.report.methods_text import Facts, Methods, Trained, methods_text
from panorgan.report.run import model_cards


def describe_methods(
    config: Mapping[str, Any],
    files: Mapping[str, Any],
    entries: Sequence[Entry],
    main: Student,
    labels: Labels,
) -> Methods:
    """What was done, in paragraphs that cite; of the students the main one's training."""
    training = [entry for entry in entries if entry.split == "train"]
    versions = (card.get("versions", {}) for card in model_cards(files))
    facts = Facts(
        cases=Counter(entry.split for entry in entries),
        scored={split: summary["cases"] for split, summary in main.summaries.items()},
        excluded=len({row["case"] for row in read_table(files["excluded"])}),
        repaired=len({row["case"] for row in read_table(files["repaired"])}),
        labelled=sum(bool(entry.label) for entry in training),
        teacher_cases=sum(row["status"] == "ok" for row in read_rows(files["selection"])),
        unknown_tumour=sum(needs_tumour(entry, labels) for entry in training),
        given_organs=sum(bool(entry.organs) for entry in training),
        teacher=_trained(Path(files["teacher"])),
        student=_trained(main.model),
        versions={name: text for found in versions for name, text in found.items()},
    )
    return methods_text(load_config(config), facts)


def _trained(model: Path) -> Trained:
    plan = model / "plans.json"
    return Trained.of(read_json(model / "card.json"), read_json(plan) if plan.exists() else None)
