"""What the HTML pages share: templates, number formats, and the tables that describe the data."""

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from panorgan.cases import SPLITS
from panorgan.labels import Labels
from panorgan.manifest import ABSENT, ANNOTATED, UNKNOWN, Entry

DASH = MISSING = "\N{EN DASH}"
ScoreRow = tuple[str, str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]
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


def percent(value: float | None, digits: int = 2) -> str:
    """A score between 0 and 1 in percent, e.g. ``87.31``."""
    # No minus before a zero.
    return MISSING if value is None else f"{round(value * 100, digits) + 0.0:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """A difference of scores in percentage points with its sign, e.g. ``+1.20``; 0 has none."""
    text = percent(value, digits)
    return text if text[0] in f"-{MISSING}" or not float(text) else f"+{text}"


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval of differences in percentage points, e.g. ``-0.30 to 1.20``; empty without."""
    return "" if low is None else f"{percent(low, digits)} to {percent(high, digits)}"


def count(number: int, word: str) -> str:
    """How many of something, e.g. ``1 case`` or ``14 classes``."""
    plural = word + ("es" if word.endswith("s") else "s")
    return f"{number:,} {word if number == 1 else plural}"


def interval(ends: Sequence[float] | None) -> str:
    """Two scores between 0 and 1 in percent, with a dash between them: 81.2 to 90.4.

    Empty where there is none, or where both ends are the same, as for a single case.
    """
    if ends is None or ends[0] == ends[1]:
        return ""
    return DASH.join(percent(end, 1) for end in ends)


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands apart, e.g. ``12,345.6``."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign, e.g. ``+1.20``."""
    return MISSING if value is None else f"{value:+,.{digits}f}"


def size(count: float) -> str:
    """A number of bytes, e.g. ``12.3 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def duration(hours: float) -> str:
    """A length of time, e.g. ``3.2 hours`` or ``45.0 minutes``."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def data_uri(content: bytes, kind: str) -> str:
    """A file's content as a URI that an `img` can hold; `kind` is e.g. ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range, e.g. ``2.5 (0.7 to 5.0)``."""
    values = list(values)
    if not values:
        return MISSING
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), np.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def score_rows(labels: Labels) -> list[ScoreRow]:
    """Rows of a table of scores: title, colour (of means none), and where a summary has them."""
    return [
        *(
            (label.title, label.colour, lambda summary, name=label.name: summary["classes"][name])
            for label in labels.labels
        ),
        ("Mean of the organs", "", lambda summary: summary["organs"]),
        ("Mean of all classes", "", lambda summary: summary["all"]),
        (
            f"{labels.tumour.title}, only cases with one",
            "",
            lambda summary: summary["tumour"]["positive"],
        ),
    ]


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
