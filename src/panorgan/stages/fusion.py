"""Fusion of partial labels, tumour pseudo-labels and organ pseudo-labels, a shard at a time."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import product
from pathlib import Path

import numpy as np

from panorgan.cases.manifest import Entry, read_manifest
from panorgan.cases.selection import TUMOUR, needs_tumour
from panorgan.config.labels import Labels, load_labels
from panorgan.fusing.fusion import (
    IGNORED_TUMOUR,
    ORDERS,
    REFERENCE,
    Fused,
    Source,
    composition,
    conflicts,
    fuse_stage1,
    fuse_stage2,
    specks,
)
from panorgan.io.volumes import (
    Volume,
    VolumeError,
    geometry_hash,
    read_label,
    voxel_hash,
    write_label,
)
from panorgan.problems import Problems
from panorgan.run.store import Result, ShardOutput, ShardReader, Work, run_shard
from panorgan.stages import AUTOMATIC, LABEL, SOURCE, UNKNOWNS, VERSIONS
from panorgan.stages.pseudo_labels import OrganLabels, on_grid

CONFLICTS = ("kept", "kept_name", "lost", "lost_name", "lost_input", "voxels", "ml")
DETAILS = {"composition": ("value", "name", "source", "voxels", "ml"), "conflicts": CONFLICTS}
SPECKS = ("value", "name", "voxels", "ml")
NOISE_MM = 20.0
"""Side of the blocks whose places noise exchanges: a piece of an organ, not one voxel."""


def fuse_tumours(
    manifest: str,
    tumours: ShardReader | None,
    out: ShardOutput,
    *,
    labels_file: str,
    order: str = REFERENCE,
    tumour_value: int = TUMOUR,
    organs: ShardReader | None = None,
    decisions: str = "",
) -> int:
    """Stage 1: partial labels and, where the tumour is unknown, tumour pseudo-labels.

    Parameters
    ----------
    tumours
        Maps in which `tumour_value` is tumour; they may hold other classes. None: there are no
        pseudo-labels, and only cases with a partial label are taken.
    order
        Who wins: a name of `panorgan.fusing.fusion.ORDERS`.
    organs
        Organ pseudo-labels that a model made; None takes those that the case table names. They
        only tell where organs are, for cases in which that decides where tumours may be.
    decisions
        Path of the gate's decisions; empty: all pseudo-labels are trusted. Pieces are cleaned or
        ignored before anything is fused.
    """
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels)}
    pseudo, gate = OrganLabels(organs), _Gate(decisions, labels)
    taken = {name: entry for name, entry in entries.items() if tumours or entry.label}

    def asks_for_organs(entry: Entry) -> bool:
        admission = ORDERS[order].inside_organs or entry.scope is not None
        return bool(tumours) and admission and needs_tumour(entry, labels)

    def inputs(entry: Entry) -> dict[str, object]:
        found = {
            "label": entry.facts["label_hash"],
            "grid": entry.facts["grid"],
            "states": _states(entry),
        }
        if tumours and needs_tumour(entry, labels):
            scope = None if entry.scope is None else sorted(entry.scope)
            found |= {"tumour": tumours.checksums(entry.case), "value": tumour_value}
            found |= {"order": order, "scope": scope, "gate": gate.key(entry.case, tumour=True)}
        if asks_for_organs(entry):
            found["organs"] = [pseudo.key(entry), gate.key(entry.case, tumour=False)]
        return found

    def compute(name: str, folder: Path) -> Result:
        entry = taken[name]
        like = entry.frame()
        tumour = organ_map = None
        if tumours and needs_tumour(entry, labels):
            tumour = on_grid(entry, tumours.read_label(name, LABEL), like) == tumour_value
            tumour = gate.judged_tumour(name, tumour)
        if asks_for_organs(entry):
            organ_map = gate.judged_organs(name, on_grid(entry, pseudo.read(entry), like))
        fused = fuse_stage1(
            on_grid(entry, entry.read_label() if entry.label else None, like),
            tumour,
            entry.states,
            labels,
            order,
            entry.scope,
            organ_map,
        )
        # Without pseudo-labels tumours may be unknown too.
        unknown = _unknown_organs(entry, labels) if tumours else entry.unknown
        return _write(folder, entry, fused, like, unknown, labels)

    return run_shard(
        [Work(name, inputs(entry), entry.image) for name, entry in taken.items()],
        compute,
        out,
        parameters=_parameters(1, labels) | {"pseudo-labels": tumours is not None},
        columns=[UNKNOWNS],
        details={**DETAILS, "specks": SPECKS},
        others=[
            {"case": name, "status": "excluded", "reason": "has no label"}
            for name in entries
            if name not in taken
        ],
    )


def fuse_organs(
    manifest: str,
    first: ShardReader,
    out: ShardOutput,
    *,
    labels_file: str,
    organs: ShardReader | None = None,
    decisions: str = "",
    shuffle_seed: int | None = None,
    corrected: Mapping[str, str] | None = None,
    corrections: str = "",
) -> int:
    """Stage 2: what stage 1 left as background is filled with organ pseudo-labels.

    Parameters
    ----------
    first
        Stage 1.
    organs
        Organ pseudo-labels that a model made; None takes those that the case table names.
    decisions
        As in `fuse_tumours`; a dropped case has no label, unless it is corrected.
    shuffle_seed
        With a seed the organ pseudo-labels are noise: see `shuffled`.
    corrected
        Paths of the labels that a person has corrected, by case. One takes the place of the fused
        label, which is kept beside it as ``CASE_automatic.nii.gz``.
    corrections
        The table that names these.

    Raises
    ------
    Problems
        Also if a corrected label cannot be read, is on another grid, or holds other values.
    """
    labels = load_labels(labels_file)
    entries = {entry.case: entry for entry in read_manifest(manifest, labels)}
    pseudo, gate = OrganLabels(organs), _Gate(decisions, labels)
    by_hand = _Corrections(corrected or {}, corrections, labels)
    dropped = {
        name: reason
        for name in entries
        if name not in by_hand.paths and (reason := gate.reason_against(name))
    }

    def left(entry: Entry) -> list[int]:
        """Organs of which nothing is known even with the pseudo-label."""
        return sorted({*_unknown_organs(entry, labels)} - pseudo.values(entry))

    def inputs(entry: Entry) -> dict[str, object]:
        key = pseudo.key(entry)
        noise = {} if key is None or shuffle_seed is None else {"noise": [shuffle_seed, NOISE_MM]}
        return {
            "stage1": first.checksums(entry.case),
            "grid": entry.facts["grid"],
            "states": _states(entry),
            "organs": key,
            "gate": gate.key(entry.case, tumour=False),
            UNKNOWNS: left(entry),
            **noise,
            **by_hand.key(entry.case),
        }

    def compute(name: str, folder: Path) -> Result:
        entry = entries[name]
        like = entry.frame()
        organ_map = gate.judged_organs(name, on_grid(entry, pseudo.read(entry), like))
        if organ_map is not None and shuffle_seed is not None:
            organ_map = shuffled(organ_map, like.grid.spacing, name, shuffle_seed)
        fused = fuse_stage2(
            on_grid(entry, first.read_label(name, LABEL), like),
            on_grid(entry, first.read_label(name, SOURCE), like),
            organ_map,
            entry.states,
            labels,
        )
        return by_hand.write(folder, entry, fused, like, left(entry))

    return run_shard(
        [
            Work(name, inputs(entry), entry.image)
            for name, entry in entries.items()
            if name not in dropped
        ],
        compute,
        out,
        parameters=_parameters(2, labels),
        columns=[UNKNOWNS],
        details=DETAILS,
        others=[
            {"case": name, "status": "excluded", "reason": reason}
            for name, reason in dropped.items()
        ],
    )


def shuffled(
    organs: np.ndarray, spacing: tuple[float, float, float], case: str, seed: int
) -> np.ndarray:
    """Organ pseudo-labels as noise: blocks of about `NOISE_MM` change places at random.

    So there is as much of each class as before, in pieces that look like it, in wrong places: a
    student that learns as well from these would not have needed pseudo-labels. Blocks that the
    volume's end cuts off change places among those of their own size.

    Parameters
    ----------
    organs : uint8 (z, y, x)
    spacing : (z, y, x)
        mm.
    case, seed
        The same give the same noise.

    Returns
    -------
    uint8 (z, y, x)
        A new array.
    """
    name = int.from_bytes(blake2b(case.encode(), digest_size=8).digest(), "big")
    random = np.random.default_rng([seed, name])
    noise = np.empty_like(organs)
    parts = []
    for size, mm in zip(organs.shape, spacing, strict=True):
        side = max(1, min(round(NOISE_MM / mm), size))
        whole = size - size % side
        parts.append([(slice(0, whole), side), (slice(whole, size), size - whole)])
    for places in product(*parts):
        inside, sides = zip(*places, strict=True)
        region = organs[inside]
        if not region.size:
            continue
        counts = [size // side for size, side in zip(region.shape, sides, strict=True)]
        interleaved = [n for pair in zip(counts, sides, strict=True) for n in pair]
        blocks = region.reshape(interleaved).transpose(0, 2, 4, 1, 3, 5).reshape(-1, *sides)
        blocks = blocks[random.permutation(len(blocks))].reshape(*counts, *sides)
        noise[inside] = blocks.transpose(0, 3, 1, 4, 2, 5).reshape(region.shape)
    return noise


class _Gate:
    """What the gate decided on each case, or nothing."""

    def __init__(self, decisions: str, labels: Labels):
        self.labels = labels
        self.cases: dict[str, tuple[str, str, dict[tuple[int, int], str]]] = {}
        if decisions:
            from panorgan.fusing.gate import read_decisions

            self.cases = read_decisions(decisions)

    def reason_against(self, case: str) -> str:
        """Why a case is not learnt from; empty if it is."""
        status, reason, _ = self.cases.get(case, ("keep", "", {}))
        return "" if status == "keep" else reason or "dropped by the gate"

    def _actions(self, case: str, tumour: bool) -> dict[tuple[int, int], str]:
        actions = self.cases.get(case, ("", "", {}))[2]
        return {
            piece: action
            for piece, action in sorted(actions.items())
            if action != "keep" and (piece[0] == self.labels.tumour.value) == tumour
        }

    def key(self, case: str, *, tumour: bool) -> list[list[object]]:
        """All that is done to a case's pieces, of tumour or of organs."""
        return [[*piece, action] for piece, action in self._actions(case, tumour).items()]

    def judged_tumour(self, case: str, mask: np.ndarray) -> np.ndarray:
        """A tumour mask, 0 and 1, of which pieces are 0 or ignored."""
        actions = {(1, number): action for (_, number), action in self._actions(case, True).items()}
        return _apply(mask.view(np.uint8), actions, IGNORED_TUMOUR)

    def judged_organs(self, case: str, organs: np.ndarray | None) -> np.ndarray | None:
        """An organ pseudo-label, if there is one, of which pieces are background or ignored."""
        if organs is None:
            return None
        return _apply(organs, self._actions(case, False), self.labels.ignore)


def _apply(label: np.ndarray, actions: dict[tuple[int, int], str], ignore: int) -> np.ndarray:
    if not actions:
        return label
    from panorgan.fusing.components import apply_decisions

    return apply_decisions(label, actions, ignore)


class _Corrections:
    """Labels that a person has corrected: they take the place of fused ones."""

    def __init__(self, paths: Mapping[str, str], file: str, labels: Labels):
        self.paths, self.file, self.labels = paths, file, labels

    def key(self, case: str) -> dict[str, object]:
        """What tells one corrected label from another; nothing for other cases."""
        if case not in self.paths:
            return {}
        try:
            volume = self._read(case)
        except Exception as error:  # said when the case's turn comes, like any other's
            return {"corrected": str(error)}
        return {"corrected": [voxel_hash(volume), geometry_hash(volume)]}

    def _read(self, case: str) -> Volume:
        try:
            return read_label(self.paths[case])
        except VolumeError as error:
            raise self._wrong(case, error.cause, error.cure) from None

    def _wrong(self, case: str, cause: str, cure: str) -> Problems:
        cause = f"its corrected label {self.paths[case]} {cause}"
        return Problems.one(cause, cure, case=case, file=self.file)

    def write(
        self, folder: Path, entry: Entry, fused: Fused, like: Volume, unknown: Iterable[int]
    ) -> Result:
        """Write a case: the corrected label where there is one, else the fused one."""
        case, labels = entry.case, self.labels
        if case not in self.paths:
            return _write(folder, entry, fused, like, unknown, labels)
        corrected = self._read(case)
        if difference := like.grid.difference(corrected.grid):
            cure = "save it in the geometry of its image"
            raise self._wrong(case, f"is not on its image's grid: {difference}", cure)
        label = corrected.array
        values, numbers = np.unique(label, return_counts=True)
        counts = dict(zip(values.tolist(), numbers.tolist(), strict=True))
        if strange := [value for value in counts if value > labels.ignore]:
            cause = f"holds {', '.join(map(str, strange))}: no class"
            cure = f"it may hold 0, classes, and {labels.ignore} for voxels to ignore"
            raise self._wrong(case, cause, cure)
        source_of = np.full(labels.ignore + 1, Source.GROUND_TRUTH, np.uint8)
        source_of[0], source_of[labels.ignore] = Source.BACKGROUND, Source.IGNORED
        voxels = Counter({(v, Source(source_of[v])): n for v, n in counts.items()})
        write_label(folder / (case + AUTOMATIC), fused.label, like)
        fused = replace(fused, label=label, source=source_of[label], voxels=voxels)
        return _write(folder, entry, fused, like, (), labels)


def _unknown_organs(entry: Entry, labels: Labels) -> list[int]:
    return [value for value in entry.unknown if value != labels.tumour.value]


def _parameters(stage: int, labels: Labels) -> dict[str, object]:
    return {
        "version": VERSIONS["fuse"],
        "stage": stage,
        "names": labels.names,
        "tumour": labels.tumour_name,
    }


def _states(entry: Entry) -> Mapping[str, str]:
    return {str(value): state for value, state in sorted(entry.states.items())}


def _write(
    folder: Path,
    entry: Entry,
    fused: Fused,
    like: Volume,
    unknown: Iterable[int],
    labels: Labels,
) -> Result:
    write_label(folder / (entry.case + LABEL), fused.label, like)
    write_label(folder / (entry.case + SOURCE), fused.source, like)
    voxel_ml = like.grid.voxel_ml
    return Result(
        {UNKNOWNS: " ".join(map(str, unknown))},
        {
            "composition": composition(fused, labels, voxel_ml),
            "conflicts": conflicts(fused, labels, voxel_ml),
            "specks": specks(fused, labels, voxel_ml),
        },
    )
