"""Semi-supervised abdominal multi-organ and pan-cancer CT segmentation.

What a notebook needs, loaded when it is first used::

    from panorgan import Predictor, draw_case, fuse, load_labels, read_image, score_case

    image = read_image("ct.nii.gz")                  # .array (z, y, x), .grid
    label = Predictor("results/flare23/…/model").predict(image)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "read_image": "io.volumes",
    "read_label": "io.volumes",
    "write_label": "io.volumes",
    "load_labels": "config.labels",
    "demo_model": "config.labels",
    "Predictor": "inference.predictor",
    "fuse": "fusing.fusion",
    "score_case": "scoring.metrics",
    "draw_case": "report.drawing",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"panorgan.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'panorgan' has no attribute '{name}'")
