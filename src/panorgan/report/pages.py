"""What the HTML pages share: templates, number formats, and the tables that describe the data."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from panorgan.cases.manifest import ABSENT, ANNOTATED, UNKNOWN, Entry
from panorgan.cases.table import SPLITS
from panorgan.config.labels import Labels
from panorgan.io.formats import interval, number, percent, signed, size, spread

MOST_ROWS = 200
"""Longer lists are cut, with the file that has them all."""


def render(template: str, **context: Any) -> str:
    """A page or text from one of the package's templates; in HTML every value is escaped."""
    html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("panorgan"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=html,
        lstrip_blocks=html,
    )
    filters = (percent, interval, number, signed, size)
    environment.filters |= {filter.__name__: filter for filter in filters}
    return environment.get_template(template).render(most_rows=MOST_ROWS, **context)


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as a URI that an `img` can hold; `kind` is e.g. ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def describe_data(entries: Sequence[Entry], labels: Labels) -> dict[str, Any]:
    """The tables of `_data.html.j2`: cases by source, annotated classes, tumours, geometry."""
    sources = _by(entries, lambda entry: (SPLITS.index(entry.split), entry.source))
    groups = {f"{SPLITS[split]}: {source}": found for (split, source), found in sources.items()}
    training = [entry for entry in entries if entry.split == "train"]
    return {
        "splits": {split: sum(entry.split == split for entry in entries) for split in SPLITS},
        "sources": [
            {
                "split": SPLITS[split],
                "source": source,
                "cases": len(found),
                "labelled": sum(bool(entry.label) for entry in found),
                "organs": sum(bool(entry.organs) for entry in found),
            }
            for (split, source), found in sources.items()
        ],
        "groups": list(groups),
        "classes": [
            {
                "title": label.title,
                "colour": label.colour,
                "training": _states(training, label.value),
                "groups": [_states(found, label.value) for found in groups.values()],
            }
            for label in labels.labels
        ],
        "tumours": [_tumours(split, entries, labels) for split in SPLITS],
        "geometry": [
            _geometry(split, [entry for entry in entries if entry.split == split])
            for split in SPLITS
            if any(entry.split == split for entry in entries)
        ],
    }


def _by(entries: Iterable[Entry], key) -> dict[Any, list[Entry]]:
    groups: dict[Any, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (key(entry), entry.case)):
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _states(entries: Sequence[Entry], value: int) -> dict[str, int]:
    """In how many cases a class is annotated, absent and unknown."""
    found = Counter(entry.states[value] for entry in entries)
    return {state: found[state] for state in (ANNOTATED, ABSENT, UNKNOWN)}


def _tumours(split: str, entries: Iterable[Entry], labels: Labels) -> dict[str, Any]:
    tumour = labels.tumour.value
    inside = [entry for entry in entries if entry.split == split]
    volumes = [entry.volume_ml(tumour) for entry in inside if entry.states[tumour] == ANNOTATED]
    return {"split": split, **_states(inside, tumour), "ml": spread(volumes)}


def _geometry(split: str, entries: Sequence[Entry]) -> dict[str, Any]:
    axes = range(3)
    orientations = Counter(entry.facts["orientation"] for entry in entries)
    return {
        "split": split,
        "shape": [spread((entry.shape[axis] for entry in entries), 0) for axis in axes],
        "spacing": [spread((entry.spacing[axis] for entry in entries), 2) for axis in axes],
        "orientations": ", ".join(f"{name} {count}" for name, count in orientations.most_common()),
    }


def cut(rows: Sequence[Mapping[str, Any]], file: str) -> dict[str, Any]:
    """A long list's first rows, how many it has and the file with all of them."""
    return {"rows": rows[:MOST_ROWS], "count": len(rows), "file": str(file)}
