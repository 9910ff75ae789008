"""The cases as pictures: sizes, spacings and tumour volumes of each split."""

from collections.abc import Iterable, Sequence

from panorgan.cases.manifest import Entry
from panorgan.cases.table import SPLITS
from panorgan.config.labels import ANNOTATED, Labels
from panorgan.io import plots
from panorgan.report.pictures import Gallery, Picture

UNITS = {
    "Slices": "",
    "Slice distance": "mm",
    "In-plane spacing": "mm",
    "Extent from feet to head": "mm",
    "Extent from left to right": "mm",
    "Tumour of a case": "ml",
}


def distributions(entries: Iterable[Entry], labels: Labels) -> dict[str, dict[str, list[float]]]:
    """For each quantity of `UNITS` the numbers of all cases by split; what nobody has is left out.

    Slices lie along the patient's axis; tumours are those of cases in which they are annotated.
    """
    tumour = labels.tumour.value
    by_split: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for entry in entries:
        by_split[entry.split].append(entry)
    measures = {
        "Slices": lambda entry: entry.shape[0],
        "Slice distance": lambda entry: entry.spacing[0],
        "In-plane spacing": lambda entry: entry.spacing[2],
        "Extent from feet to head": lambda entry: entry.shape[0] * entry.spacing[0],
        "Extent from left to right": lambda entry: entry.shape[2] * entry.spacing[2],
    }
    found = {
        name: {split: [float(measure(entry)) for entry in of] for split, of in by_split.items()}
        for name, measure in measures.items()
    }
    found["Tumour of a case"] = {
        split: [entry.volume_ml(tumour) for entry in of if entry.states[tumour] == ANNOTATED]
        for split, of in by_split.items()
    }
    return {
        name: {split: values for split, values in groups.items() if values}
        for name, groups in found.items()
        if any(groups.values())
    }


def draw_distributions(
    entries: Sequence[Entry], labels: Labels, gallery: Gallery
) -> Picture | None:
    """The histograms of `distributions`."""
    groups = distributions(entries, labels)
    if not groups:
        return None
    return gallery.add(
        "plots",
        lambda: plots.draw_histograms(groups, UNITS),
        f"Histograms by split: {', '.join(groups).lower()}; medians and ranges are in the tables",
    )
