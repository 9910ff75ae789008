"""The gate: which pieces of pseudo-labels are learnt from, decided from tables of them alone.

No volume is read here, so thresholds are applied again in seconds. A piece is *kept*, *cleaned* (it
becomes background: it cannot be what it says) or *ignored* (it may be; nothing is learnt there). A
case is kept, or dropped from training. An empty field of a table never decides, and a value at its
threshold is kept. The pages of `docs/gate.md` say why each test is what it is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from panorgan.config.settings import Gate, OrganGate
from panorgan.io.tables import read_table, write_table
from panorgan.problems import Problem, Problems

KEEP, CLEAN, IGNORE, DROP = "keep", "clean", "ignore", "drop"
ACTIONS = (KEEP, CLEAN, IGNORE)
DECISION_COLUMNS = ("case", "value", "name", "component", "action", "rule", "reason", "ml")
CASE_COLUMNS = ("case", "status", "rule", "reason", "instability", "doubt", "why")
CASES = "cases.tsv"
"""The table of cases, beside that of decisions."""

MIN_PIECES = 20
"""Fewer found tumours give no quantile."""
MIN_CASES = 8
"""With fewer cases nobody knows an organ's usual size and place."""
MIN_NEIGHBOURS = 3
"""Fewer other organs do not say where an organ should be."""
MIN_DOUBTFUL = 2
"""One doubtful organ is ignored; it takes more to drop a case."""
LOG_VOLUME_FLOOR = 0.1
POSITION_FLOOR_MM = 5.0
"""Least robust standard deviations: cases that are nearly equal make no outliers of each other."""
MAD_TO_SD = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""


class Rule(StrEnum):
    """What decided on a piece or a case: its name in the tables, and a text for people."""

    text: str

    def __new__(cls, name: str, text: str) -> "Rule":
        rule = str.__new__(cls, name)
        rule._value_, rule.text = name, text
        return rule

    NONE = "", ""
    UNUSED = "unused", "not used: annotators looked for the class in the case"
    VOLUME = "volume", "volume below gate.tumour.min_ml"
    HU = "hu", "mean HU outside gate.tumour.hu"
    DISTANCE = "distance", "further from every organ than gate.tumour.max_distance_mm"
    MEAN_PROBABILITY = "mean_probability", "mean probability below gate.tumour.min_mean_probability"
    MAX_PROBABILITY = "max_probability", "maximum probability below gate.tumour.min_max_probability"
    SHARE = "share", "share of the organ's largest piece below gate.organs.min_share"
    PIECES = "pieces", "beside the organ's largest piece: an organ is in one piece"
    SIDES = "sides", "sides swapped"
    SIZE = "size", "size deviates by more than gate.organs.max_volume_deviation"
    PLACE = "place", "place deviates by more than gate.organs.max_position_deviation"
    INSTABILITY = "instability", "instability above gate.max_instability"
    DOUBTFUL_ORGANS = "doubtful_organs", "share of doubtful organs above gate.organs.max_doubtful"


Why = tuple[Rule, str]
"""A rule, and its reason with the numbers of the piece or case."""


@dataclass(frozen=True, slots=True)
class Component:
    """A row of a table of components; None or "" is what the table does not know."""

    case: str
    value: int
    name: str
    component: int
    ml: float
    mean_probability: float | None = None
    max_probability: float | None = None
    hu_mean: float | None = None
    organ: str = ""
    distance_mm: float | None = None
    centre_mm: tuple[float, float, float] | None = None
    at_border: bool = False
    hit_ml: float | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "Component":
        """The row's fields with their types; `centre_mm` is RAS (x, y, z)."""
        centre = row["centre_mm"].split()
        return cls(
            row["case"],
            int(row["value"]),
            row["name"],
            int(row["component"]),
            float(row["ml"]),
            _number(row["mean_probability"]),
            _number(row["max_probability"]),
            _number(row["hu_mean"]),
            row["organ"],
            _number(row["distance_mm"]),
            (float(centre[0]), float(centre[1]), float(centre[2])) if centre else None,
            row["at_border"] == "yes",
            _number(row["hit_ml"]),
        )

    @property
    def hits(self) -> bool:
        """Whether at least half of it is annotated tumour."""
        return bool(self.hit_ml) and self.hit_ml >= self.ml / 2


@dataclass(frozen=True, slots=True, order=True)
class Decision:
    """What is done with a piece; `rule` and `reason` are empty for those that are simply kept."""

    case: str
    value: int
    component: int
    name: str
    action: str
    rule: Rule
    reason: str
    ml: float


@dataclass(frozen=True, slots=True)
class CaseDecision:
    """What is done with a case: `KEEP` or `DROP`; `doubt` is 0 where nothing is doubtful."""

    case: str
    status: str
    rule: Rule
    reason: str
    instability: float | None
    doubt: float
    why: str


@dataclass(frozen=True)
class Thresholds:
    """When a tumour's piece is trusted; `measured` has the pieces behind each that is a quantile's.

    Thresholds that `measured` does not name are the config's.
    """

    min_ml: float
    min_hu: float
    max_hu: float
    max_distance_mm: float
    min_mean_probability: float
    min_max_probability: float
    measured: Mapping[str, int] = field(default_factory=dict)


def _number(text: str) -> float | None:
    return float(text) if text else None


def thresholds(settings: Gate, known: Iterable[Component] = ()) -> Thresholds:
    """The tumours' thresholds, from the config or from found tumours.

    With ``settings.quantile`` q each is set so that at most the share q of the pieces that hit an
    annotated tumour (at least half of their volume lies in it) fails it: the q-quantile of volume
    and probabilities, the (1-q)-quantile of the distance, and for the HU those of q/2 and 1-q/2.
    A quantile is one of the measured values, never one between two.

    Parameters
    ----------
    known
        Tumour pieces of annotated training cases, by networks that did not train on their case.

    Raises
    ------
    Problems
        If there are fewer than `MIN_PIECES` such pieces for the quantiles.
    """
    tumour = settings.tumour
    chosen = {
        "min_ml": tumour.min_ml,
        "min_hu": tumour.hu[0],
        "max_hu": tumour.hu[1],
        "max_distance_mm": tumour.max_distance_mm,
        "min_mean_probability": tumour.min_mean_probability,
        "min_max_probability": tumour.min_max_probability,
    }
    quantile = settings.quantile
    if quantile is None:
        return Thresholds(**chosen)
    found = [piece for piece in known if piece.hits]
    if len(found) < MIN_PIECES:
        cause = f"needs {MIN_PIECES} found annotated tumours, and there are {len(found)}"
        cure = "set it to null, and the thresholds in gate.tumour yourself, or annotate more cases"
        raise Problems([Problem("config", "gate.quantile", cause, cure)])
    measures = {
        "min_ml": ("ml", quantile),
        "min_hu": ("hu_mean", quantile / 2),
        "max_hu": ("hu_mean", 1 - quantile / 2),
        "max_distance_mm": ("distance_mm", 1 - quantile),
        "min_mean_probability": ("mean_probability", quantile),
        "min_max_probability": ("max_probability", quantile),
    }
    measured = {}
    for name, (attribute, share) in measures.items():
        numbers = [getattr(piece, attribute) for piece in found]
        numbers = [number for number in numbers if number is not None]
        if len(numbers) >= MIN_PIECES:
            side = "lower" if share < 0.5 else "higher"
            chosen[name] = float(np.quantile(numbers, share, method=side))
            measured[name] = len(numbers)
    return Thresholds(**chosen, measured=measured)


def judge_tumours(pieces: Iterable[Component], limits: Thresholds) -> list[Decision]:
    """Decide on every tumour piece, sorted by case and component.

    The first test that a piece fails decides. Too small a piece, or one of another density than
    tissue, cannot be a tumour and is cleaned; one far from every organ, or of which the network is
    not sure, is ignored.
    """
    return sorted(_decision(piece, *_judge_tumour(piece, limits)) for piece in pieces)


def _decision(piece: Component, action: str, rule: Rule = Rule.NONE, reason: str = "") -> Decision:
    return Decision(
        piece.case, piece.value, piece.component, piece.name, action, rule, reason, piece.ml
    )


def _judge_tumour(piece: Component, limits: Thresholds) -> tuple[str, Rule, str]:
    if piece.ml < limits.min_ml:
        shown = _shown(piece.ml, 2, limits.min_ml)
        return CLEAN, Rule.VOLUME, f"{shown} ml, below {limits.min_ml:.9g}"
    hu = piece.hu_mean
    if hu is not None and not limits.min_hu <= hu <= limits.max_hu:
        shown = _shown(hu, 0, limits.min_hu, limits.max_hu)
        usual = f"{limits.min_hu:.9g} to {limits.max_hu:.9g}"
        return CLEAN, Rule.HU, f"mean HU {shown} is outside {usual}"
    distance = piece.distance_mm
    if distance is not None and distance > limits.max_distance_mm:
        shown = _shown(distance, 0, limits.max_distance_mm)
        where = f"{shown} mm from the nearest organ ({piece.organ})"
        return IGNORE, Rule.DISTANCE, f"{where}, more than {limits.max_distance_mm:.9g}"
    for rule, word, probability, least in (
        (Rule.MEAN_PROBABILITY, "mean", piece.mean_probability, limits.min_mean_probability),
        (Rule.MAX_PROBABILITY, "maximum", piece.max_probability, limits.min_max_probability),
    ):
        if probability is not None and probability < least:
            shown = _shown(probability, 2, least)
            return IGNORE, rule, f"{word} probability {shown}, below {least:.9g}"
    return KEEP, Rule.NONE, ""


def _shown(value: float, digits: int, *limits: float) -> str:
    """A number with so many digits that it does not read like a limit that it misses."""
    while digits < 9 and any(float(f"{value:.{digits}f}") == limit for limit in limits):
        digits += 1
    return f"{value:.{digits}f}"


def _ml(volume: float) -> str:
    return f"{volume:.0f} ml" if volume >= 100 else f"{volume:.3g} ml"


def judge_organs(
    pieces: Iterable[Component], settings: OrganGate, pairs: Sequence[tuple[int, int]] = ()
) -> list[Decision]:
    """Decide on every organ piece, sorted by case, value and component.

    An organ whose largest piece is on its partner's side, or has a size or place that is an outlier
    among all cases, is ignored with all its pieces. Of the others the largest piece is kept.

    Parameters
    ----------
    pieces
        Those of all cases: what is usual is their median.
    pairs
        Values (right, left) of organs with a partner.
    """
    organs: dict[tuple[str, int], list[Component]] = defaultdict(list)
    for piece in pieces:
        organs[piece.case, piece.value].append(piece)
    # Sums and sorts must not depend on the order of the rows.
    organs = {place: organs[place] for place in sorted(organs)}
    largest = {
        place: min(found, key=lambda piece: (-piece.ml, piece.component))
        for place, found in organs.items()
    }
    # Of several reasons the one that says most about what went wrong.
    doubts = (
        _misplaced(largest, settings.max_position_deviation)
        | _missized(largest, settings.max_volume_deviation)
        | _swapped(largest, pairs)
    )
    decisions = []
    for place, found in organs.items():
        first = largest[place]
        for piece in found:
            if place in doubts:
                decisions.append(_decision(piece, IGNORE, *doubts[place]))
            elif piece is first:
                decisions.append(_decision(piece, KEEP))
            else:
                decisions.append(_decision(piece, *_judge_rest(piece, first, settings.min_share)))
    return sorted(decisions)


def _judge_rest(piece: Component, first: Component, least: float) -> tuple[str, Rule, str]:
    share = piece.ml / first.ml if first.ml else 1.0
    reason = f"{_ml(piece.ml)} beside a piece of {_ml(first.ml)}"
    if share < least:
        return CLEAN, Rule.SHARE, f"{reason}, below {least:.9g} of it"
    return IGNORE, Rule.PIECES, f"{reason}: an organ is in one piece"


def _swapped(
    largest: Mapping[tuple[str, int], Component], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[str, int], Why]:
    doubts = {}
    for right, left in pairs:
        for case, value in largest:
            if value != right or (case, left) not in largest:
                continue
            one, other = largest[case, right], largest[case, left]
            # RAS: x grows to the patient's right.
            if one.centre_mm and other.centre_mm and one.centre_mm[0] < other.centre_mm[0]:
                why = Rule.SIDES, f"{one.name} lies to the left of {other.name}: sides swapped"
                doubts |= {(case, right): why, (case, left): why}
    return doubts


def _missized(
    largest: Mapping[tuple[str, int], Component], most: float
) -> dict[tuple[str, int], Why]:
    by_value: dict[int, list[Component]] = defaultdict(list)
    for (_, value), piece in largest.items():
        if piece.ml > 0:
            by_value[value].append(piece)
    doubts = {}
    for value, found in by_value.items():
        if len(found) < MIN_CASES:
            continue
        volumes = np.log([piece.ml for piece in found])
        usual = float(np.exp(np.median(volumes)))
        for piece, deviation in zip(found, robust_z(volumes, LOG_VOLUME_FLOOR), strict=True):
            cut_off = deviation < 0 and piece.at_border
            if abs(deviation) > most and not cut_off:
                reason = f"{_ml(piece.ml)} where {_ml(usual)} are usual"
                reason = f"{reason} ({_beyond(abs(deviation), most)})"
                doubts[piece.case, value] = Rule.SIZE, reason
    return doubts


def _misplaced(
    largest: Mapping[tuple[str, int], Component], most: float
) -> dict[tuple[str, int], Why]:
    cases = sorted({case for case, _ in largest})
    values = sorted({value for _, value in largest})
    centres = np.full((len(cases), len(values), 3), np.nan)
    row = {case: at for at, case in enumerate(cases)}
    column = {value: at for at, value in enumerate(values)}
    for (case, value), piece in largest.items():
        if piece.centre_mm:
            centres[row[case], column[value]] = piece.centre_mm
            if piece.at_border:
                # Where the scan ends says where along z the rest of an organ has its centre.
                centres[row[case], column[value], 2] = np.nan
    deviations = place_deviations(centres)
    doubts = {}
    for value in values:
        far = deviations[:, column[value]]
        judged = np.flatnonzero(np.isfinite(far))
        if len(judged) < MIN_CASES:
            continue
        for at, deviation in zip(judged, robust_z(far[judged], POSITION_FLOOR_MM), strict=True):
            if deviation > most:
                reason = f"{far[at]:.0f} mm from where the other organs put it"
                reason = f"{reason} ({_beyond(deviation, most)})"
                doubts[cases[at], value] = Rule.PLACE, reason
    return doubts


def _beyond(deviation: float, most: float) -> str:
    return f"{_shown(deviation, 1, most)} robust standard deviations, more than {most:.9g}"


def robust_z(values: np.ndarray, floor: float) -> np.ndarray:
    """Deviations from the median in robust standard deviations (1.4826 MAD, at least `floor`).

    Parameters
    ----------
    values : (n,) float
    """
    deviations = values - np.median(values)
    return deviations / max(MAD_TO_SD * float(np.median(np.abs(deviations))), floor)


def place_deviations(centres: np.ndarray) -> np.ndarray:
    """How far each organ lies from where the others of its case put it.

    Each other organ puts it at its own centre plus the median offset between the two over all cases
    that have both (at least `MIN_CASES`); the median of these (of at least `MIN_NEIGHBOURS`) is
    where it should be. Each axis is judged alone: one that is unknown adds nothing.

    Parameters
    ----------
    centres : (cases, organs, 3) float
        RAS mm, NaN where unknown.

    Returns
    -------
    (cases, organs) float array
        mm; NaN where no axis could be judged.
    """
    cases, organs, _ = centres.shape
    deviations = np.full((cases, organs), np.nan)
    for organ in range(organs):
        offsets = centres[:, [organ]] - np.delete(centres, organ, axis=1)
        usual = _medians(offsets, 0, MIN_CASES)
        # What each other organ says of where this one is too far.
        off = _medians(offsets - usual, 1, MIN_NEIGHBOURS)
        known = np.isfinite(off).any(axis=1)
        deviations[known, organ] = np.sqrt(np.nansum(off[known] ** 2, axis=1))
    return deviations


def _medians(values: np.ndarray, axis: int, least: int) -> np.ndarray:
    """Medians of the finite numbers along an axis; NaN where there are fewer than `least`."""
    count = np.isfinite(values).sum(axis=axis, keepdims=True)
    ordered = np.sort(values, axis=axis)  # NaN last
    last = max(values.shape[axis] - 1, 0)
    if not values.shape[axis]:
        return np.full(np.delete(values.shape, axis), np.nan)
    low = np.take_along_axis(ordered, np.clip((count - 1) // 2, 0, last), axis)
    high = np.take_along_axis(ordered, np.clip(count // 2, 0, last), axis)
    return np.where(count >= least, (low + high) / 2, np.nan).squeeze(axis)


def instability(maps: Sequence[np.ndarray]) -> float:
    """How much a case's pseudo-labels change from round to round, or checkpoint to checkpoint.

    The mean over consecutive maps of |L != L'| / |L' > 0|, counts of voxels; for three maps this is
    the reference's u. An empty L' counts as one voxel, so that two empty maps are stable (0) and
    labels that vanish are not.

    Parameters
    ----------
    maps
        Two or more label maps of one shape, the oldest first.

    Raises
    ------
    ValueError
        For fewer than two maps, or maps of different shapes.
    """
    if len(maps) < 2:
        raise ValueError(f"needs two maps or more, got {len(maps)}")
    if len({one.shape for one in maps}) > 1:
        raise ValueError(f"maps differ in shape: {', '.join(str(one.shape) for one in maps)}")
    changes = (
        np.count_nonzero(one != later) / max(np.count_nonzero(later), 1)
        for one, later in pairwise(maps)
    )
    return float(sum(changes) / (len(maps) - 1))


def doubtful_organs(decisions: Iterable[Decision]) -> dict[str, dict[int, bool]]:
    """For each case whether each organ is doubtful: no piece of it is kept."""
    found: dict[str, dict[int, bool]] = defaultdict(dict)
    for one in decisions:
        found[one.case][one.value] = found[one.case].get(one.value, True) and one.action != KEEP
    return found


def judge_cases(
    instabilities: Mapping[str, float | None], organs: Iterable[Decision], settings: Gate
) -> dict[str, Why]:
    """Why cases are dropped; the others are kept and not in the result.

    Parameters
    ----------
    instabilities
        Of every case with pseudo-labels; None where there is nothing to compare.
    organs
        Decisions on organ pieces.
    """
    dropped = {}
    doubtful = doubtful_organs(organs)
    for case, changed in sorted(instabilities.items()):
        judged = doubtful.get(case, {})
        count, most = sum(judged.values()), settings.organs.max_doubtful
        if changed is not None and changed > settings.max_instability:
            shown = _shown(changed, 2, settings.max_instability)
            reason = f"instability {shown}, above {settings.max_instability:.9g}"
            dropped[case] = Rule.INSTABILITY, reason
        elif count >= MIN_DOUBTFUL and count / len(judged) > most:
            reason = f"{count} of {len(judged)} organs are doubtful, more than {most:.9g}"
            dropped[case] = Rule.DOUBTFUL_ORGANS, reason
    return dropped


def doubts(
    instabilities: Mapping[str, float | None],
    decisions: Iterable[Decision],
    pieces: Iterable[Component],
    tumour: int,
) -> dict[str, tuple[float, str]]:
    """How doubtful each case is, for people who want to look, and why.

    The sum of: for each class the ignored share of the volume that is kept or ignored (1 for an
    organ that is ignored as a whole); 1 minus the lowest mean probability of its kept tumour
    pieces; its instability, at most 1. 0 is none of this.

    Parameters
    ----------
    pieces
        The components that were decided on, for their probabilities.
    tumour
        The value of tumours.
    """
    ignored: dict[str, dict[tuple[int, str], float]] = defaultdict(lambda: defaultdict(float))
    kept: dict[str, dict[tuple[int, str], float]] = defaultdict(lambda: defaultdict(float))
    surviving = set()
    for one in sorted(decisions):
        if one.action == IGNORE:
            ignored[one.case][one.value, one.name] += one.ml
        elif one.action == KEEP:
            kept[one.case][one.value, one.name] += one.ml
            surviving.add((one.case, one.value, one.component))
    least: dict[str, float] = {}
    for piece in pieces:
        known = piece.value == tumour and piece.mean_probability is not None
        if known and (piece.case, piece.value, piece.component) in surviving:
            least[piece.case] = min(least.get(piece.case, 1.0), piece.mean_probability)
    result = {}
    for case, changed in sorted(instabilities.items()):
        score, why = 0.0, []
        # Tumours have the last value of the class table and are what people look at first.
        for (value, name), ml in sorted(ignored[case].items(), reverse=True):
            whole = ml + kept[case][value, name]
            if whole > 0:
                score += ml / whole
                why.append(f"{_ml(ml)} of {_ml(whole)} {name} ignored")
        if least.get(case, 1.0) < 1:
            score += 1 - least[case]
            why.append(f"least sure tumour kept has mean probability {least[case]:.2f}")
        if changed:
            score += min(changed, 1.0)
            why.append(f"instability {changed:.2f}")
        result[case] = (score, "; ".join(why))
    return result


def false_positives(
    known: Iterable[Component], decisions: Iterable[Decision], free: Iterable[str]
) -> dict[str, Any]:
    """False tumours in training cases without any: before and after the gate.

    Parameters
    ----------
    known, decisions
        Tumour pieces of cases in which tumours are known, and what the gate does with them.
    free
        Those of these cases in which annotators looked everywhere and found none.

    Returns
    -------
    dict
        ``cases``: how many; ``before`` and ``after``: ``cases`` with false pieces, ``pieces``,
        and ``median_ml`` and ``max_ml`` of all these cases (None without any).
    """
    free = sorted(free)
    kept = {(one.case, one.component) for one in decisions if one.action == KEEP}
    before = [piece for piece in known if piece.case in set(free)]
    after = [piece for piece in before if (piece.case, piece.component) in kept]

    def count(pieces: Sequence[Component]) -> dict[str, Any]:
        volumes = dict.fromkeys(free, 0.0)
        for piece in sorted(pieces, key=lambda piece: (piece.case, piece.component)):
            volumes[piece.case] += piece.ml
        return {
            "cases": len({piece.case for piece in pieces}),
            "pieces": len(pieces),
            "median_ml": round(median(volumes.values()), 3) if volumes else None,
            "max_ml": round(max(volumes.values()), 3) if volumes else None,
        }

    return {"cases": len(free), "before": count(before), "after": count(after)}


def found_tumours(
    known: Iterable[Component], decisions: Iterable[Decision], annotated: Mapping[str, float]
) -> dict[str, Any]:
    """How much of annotated tumours is found, before and after the gate.

    Parameters
    ----------
    known, decisions
        As for `false_positives`.
    annotated
        ml of tumour in each of these cases that has some.

    Returns
    -------
    dict
        ``cases`` and annotated ``ml``; ``before`` and ``after``: ``cases`` in which a piece hits
        (half of it is annotated tumour), ``pieces``, ``hits`` among them, and the found
        ``share`` of the annotated volume (None without any).
    """
    kept = {(one.case, one.component) for one in decisions if one.action == KEEP}
    before = [piece for piece in known if piece.case in annotated]
    after = [piece for piece in before if (piece.case, piece.component) in kept]
    whole = sum(annotated[case] for case in sorted(annotated))

    def count(pieces: Sequence[Component]) -> dict[str, Any]:
        hit_ml = sum(sorted(piece.hit_ml or 0.0 for piece in pieces))
        return {
            "cases": len({piece.case for piece in pieces if piece.hits}),
            "pieces": len(pieces),
            "hits": sum(piece.hits for piece in pieces),
            "share": round(hit_ml / whole, 4) if whole else None,
        }

    return {
        "cases": len(annotated),
        "ml": round(whole, 3),
        "before": count(before),
        "after": count(after),
    }


def count_actions(decisions: Iterable[Decision]) -> dict[str, dict[str, float]]:
    """Pieces and ml of each action."""
    decisions = sorted(decisions)
    counts = Counter(one.action for one in decisions)
    return {
        action: {
            "pieces": counts[action],
            "ml": round(sum(one.ml for one in decisions if one.action == action), 3),
        }
        for action in ACTIONS
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """A summary in words, a sentence or two a line; `stages.judging` says what is in one."""
    who = "The teacher" if summary["origin"] == "teacher" else "The student"
    return [
        *_describe_false(who, summary),
        *_describe_found(who, summary["found"]),
        _describe_actions(summary),
        _describe_thresholds(summary),
        *_describe_unjudged(summary["organs_not_judged"]),
    ]


def _describe_false(who: str, summary: Mapping[str, Any]) -> list[str]:
    false, free = summary["false_positives"], summary["tumour_free_cases"]
    count = false["cases"]
    if not free:
        return [
            "There is no training case that is known to be free of tumours everywhere: how often "
            f"{who.lower()} marks false ones could not be measured."
        ]
    if not count:
        reason = " (selection.negatives)" if summary["negatives"] else ""
        return [
            f"{who} trained on all tumour-free cases ({free}){reason}: how often it marks false "
            "tumours could not be measured."
        ]
    before, after = false["before"], false["after"]
    lines = [
        f"{who} marks false tumours in {before['cases']} of {_cases(count, 'tumour-free')} "
        f"(median {_ml(before['median_ml'])}, most {_ml(before['max_ml'])}); after the gate in "
        f"{after['cases']} (median {_ml(after['median_ml'])}, most {_ml(after['max_ml'])})."
    ]
    if summary["negatives"]:
        lines.append(
            "Tumour-free cases were negatives in training (selection.negatives); each was judged "
            "by a network that did not train on it."
        )
    if count < free:
        lines.append(f"{_cases(free - count, 'further tumour-free')} could not be judged.")
    return lines


def _describe_found(who: str, found: Mapping[str, Any]) -> list[str]:
    if not found["ml"]:
        return []
    before, after = found["before"], found["after"]
    return [
        f"{who} finds {before['share']:.0%} of the annotated tumours' volume in "
        f"{_cases(found['cases'], '')} that it did not train on, with {before['hits']} of its "
        f"{before['pieces']} pieces; after the gate {after['share']:.0%}, with {after['hits']} of "
        f"{after['pieces']}."
    ]


def _describe_actions(summary: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("tumour", "organ"):
        count = summary["pieces"][kind]
        parts.append(
            f"of {sum(one['pieces'] for one in count.values())} {kind} pieces "
            f"{count[KEEP]['pieces']} are kept, {count[CLEAN]['pieces']} removed and "
            f"{count[IGNORE]['pieces']} ignored"
        )
    cases = summary["cases"]
    dropped = f"{cases[DROP]} of {_cases(cases[DROP] + cases[KEEP], '')} are dropped"
    return f"In the pseudo-labels {parts[0]}, {parts[1]}; {dropped}."


def _describe_thresholds(summary: Mapping[str, Any]) -> str:
    used, measured = summary["thresholds"], summary["measured_on"]
    text = (
        f"Tumours: at least {used['min_ml']:.4g} ml, mean HU {used['min_hu']:.4g} to "
        f"{used['max_hu']:.4g}, at most {used['max_distance_mm']:.4g} mm from an organ, "
        f"probability at least {used['min_mean_probability']:.4g} (mean) and "
        f"{used['min_max_probability']:.4g} (maximum)"
    )
    if not measured:
        return f"{text}: from the config."
    rest = sorted(set(used) - set(measured))
    config = f"; {', '.join(rest)} from the config" if rest else ""
    return (
        f"{text}: the {summary['quantile']:g} quantiles of {max(measured.values())} found tumours"
        f"{config}."
    )


def _describe_unjudged(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    few = f"fewer than {MIN_CASES} cases have them"
    return [f"Size and place were not judged of {', '.join(names)}: {few}."]


def _cases(count: int, kind: str) -> str:
    return " ".join(part for part in (str(count), kind, "case" if count == 1 else "cases") if part)


def write_decisions(path: str | Path, decisions: Iterable[Decision]) -> None:
    """Write a line for every piece, sorted by case, value and component."""
    rows = ({name: getattr(one, name) for name in DECISION_COLUMNS} for one in sorted(decisions))
    write_table(path, DECISION_COLUMNS, rows)


def write_cases(path: str | Path, cases: Iterable[CaseDecision]) -> None:
    """Write a line for every case, sorted by name."""
    ordered = sorted(cases, key=lambda one: one.case)
    rows = ({name: getattr(one, name) for name in CASE_COLUMNS} for one in ordered)
    write_table(path, CASE_COLUMNS, rows)


def read_decisions(path: str | Path) -> dict[str, tuple[str, str, dict[tuple[int, int], str]]]:
    """What a gate decided: for each case its status, the reason and the action of each piece.

    Parameters
    ----------
    path
        The table of decisions; that of cases is read from beside it.

    Returns
    -------
    dict
        ``{case: (KEEP or DROP, reason, {(value, component): action})}``, every piece listed.

    Raises
    ------
    Problems
        If one of the two tables cannot be read.
    """
    actions: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for row in read_table(path):
        actions[row["case"]][int(row["value"]), int(row["component"])] = row["action"]
    rows = read_table(Path(path).with_name(CASES))
    return {row["case"]: (row["status"], row["reason"], actions[row["case"]]) for row in rows}
