"""Classes that cannot be what their numbers say: of a wrong size, in two parts, inside another."""

from collections.abc import Collection, Iterator, Mapping

from panorgan.cases.places import Place
from panorgan.config.labels import Label, Labels

GAP_MM = 30.0
"""Between the parts of an organ that lies on one side of the body. Two kidneys are 70 to 90 mm
apart; within a liver that is whole there is no gap."""

ENCLOSED = 0.8
"""The share of its surface with which an organ may touch another one. Tumours in an organ have
more; a kidney has a tenth at the liver."""

LARGE_ML = 10.0
"""Organs that may be smaller lie in another's fold at times: gallbladder, adrenal glands."""


def doubtful_numbers(
    places: Mapping[int, Place],
    voxels: Mapping[int, int],
    voxel_ml: float,
    labels: Labels,
    of: Collection[int],
) -> list[str]:
    """What is said of organs that seem to be something else.

    An organ's volume is judged by the class table's `volume_ml`, the least one only where the scan
    has it whole.

    Parameters
    ----------
    places
        By value.
    voxels
        Of each value; where it lacks one its volume is not judged.
    voxel_ml
        Volume of a voxel.
    of
        Values of the classes to judge.
    """
    return [
        f"{label.name} {doubt}"
        for label in labels.organs
        if label.value in of and label.value in places
        for doubt in (
            *_sizes(label, places[label.value], voxels.get(label.value, 0) * voxel_ml),
            *_parts(label, places[label.value]),
            *_inside(label, places[label.value], labels),
        )
    ]


def _sizes(label: Label, place: Place, ml: float) -> Iterator[str]:
    least, most = label.volume_ml or (0, float("inf"))
    if ml > most:
        yield f"has {ml:.0f} ml, more than any of up to {most:g} ml"
    elif 0 < ml < least and not place.cut:
        yield f"has {ml:.3g} ml, less than any of at least {least:g} ml"


def _parts(label: Label, place: Place) -> Iterator[str]:
    if label.side and place.gap >= GAP_MM:
        yield f"is in two parts, {place.gap:.0f} mm apart from left to right: two organs?"


def _inside(label: Label, place: Place, labels: Labels) -> Iterator[str]:
    large = label.volume_ml is not None and label.volume_ml[0] >= LARGE_ML
    hosts = {organ.value: organ.name for organ in labels.organs}
    if large and place.host in hosts and place.enclosed >= ENCLOSED:
        yield (
            f"lies inside {hosts[place.host]}, which {place.enclosed:.0%} of its surface touches: "
            "a tumour?"
        )
