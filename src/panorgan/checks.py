"""Stand-in until the full module lands."""
from dataclasses import dataclass
import numpy as np
from panorgan.problems import Problem
from panorgan.volumes import VolumeError, read_image, read_label, voxel_hash

@dataclass
class CaseFacts:
    image: object
    label: object
    organs: object
    label_values: dict
    image_hash: str
    label_hash: str
    organs_hash: str

def inspect_case(case, image, label, organs, labels):
    try:
        i = read_image(image)
        l = read_label(label) if label else None
        o = read_label(organs) if organs else None
    except VolumeError as e:
        return None, [Problem(case, str(image), e.cause, e.cure)]
    vals = {}
    if l is not None:
        v, n = np.unique(l.array, return_counts=True)
        vals = {int(a): int(b) for a, b in zip(v, n) if a}
    return CaseFacts(i, l, o, vals, voxel_hash(i), voxel_hash(l) if l else "", voxel_hash(o) if o else ""), []

def find_flare_cases(folder): return []
def check_paths(paths, labels): return 0, []
