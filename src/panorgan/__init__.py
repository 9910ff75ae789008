"""Semi-supervised abdominal multi-organ and pan-cancer CT segmentation."""

__version__ = "0.1.0"
