"""Stand-in until the full module lands."""
import gzip, os
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
import nibabel as nib
import numpy as np
from isal import igzip
from pathlib import Path

class VolumeError(Exception):
    def __init__(self, cause, cure=""):
        super().__init__(cause); self.cause=cause; self.cure=cure

@dataclass(frozen=True)
class Grid:
    shape: tuple
    spacing: tuple
    affine: np.ndarray
    @property
    def orientation(self): return "".join(nib.aff2axcodes(self.affine))
    @property
    def voxel_ml(self): return float(np.prod(self.spacing))/1000
    def difference(self, other):
        if self.shape != other.shape: return "size"
        if not np.allclose(self.affine, other.affine, atol=1e-3): return "position"
        return ""

@dataclass
class Volume:
    array: np.ndarray
    grid: Grid
    header: object

def _grid(h):
    aff = h.get_sform() if h["sform_code"] > 0 else h.get_qform()
    z = tuple(float(v) for v in h.get_zooms()[:3])
    return Grid(tuple(int(v) for v in h.get_data_shape()[:3][::-1]), z[::-1], aff)

def _read(path):
    try: data = Path(path).read_bytes()
    except OSError as e: raise VolumeError(e.strerror, "check the path") from None
    if data[:2] == b"\x1f\x8b":
        try: data = igzip.decompress(data)
        except Exception as e: raise VolumeError(f"damaged gzip: {e}", "copy it again") from None
    h = nib.Nifti1Header(data[:348])
    g = _grid(h)
    off = int(h["vox_offset"])
    n = int(np.prod(g.shape))
    a = np.frombuffer(data, h.get_data_dtype(), n, off).reshape(g.shape)
    return a, g, h

def read_image(path):
    a, g, h = _read(path)
    s, i = h.get_slope_inter()
    if s not in (None, 1.0) or i not in (None, 0.0): a = a * s + i
    return Volume(a.astype(np.int16 if a.dtype.kind in "iu" else np.float32), g, h)

def read_label(path):
    a, g, h = _read(path)
    return Volume(a.astype(np.uint8), g, h)

def _write(path, a, like):
    h = like.header.copy(); h.set_data_dtype(a.dtype); h["scl_slope"]=1; h["scl_inter"]=0; h["vox_offset"]=352; h["magic"]=b"n+1"
    raw = h.binaryblock + b"\0\0\0\0" + np.ascontiguousarray(a).tobytes()
    tmp = Path(path).with_name("."+Path(path).name+".tmp")
    tmp.write_bytes(igzip.compress(raw, 1, mtime=0)); os.replace(tmp, path)

def write_label(path, array, like): _write(path, array.astype(np.uint8), like)
def write_image(path, array, like): _write(path, array, like)

def new_volume(array, spacing, affine=None):
    if affine is None: affine = np.diag([*spacing[::-1], 1.0])
    h = nib.Nifti1Header(); h.set_data_dtype(array.dtype); h.set_data_shape(array.shape[::-1])
    h.set_zooms(spacing[::-1]); h.set_qform(affine, 1); h.set_sform(affine, 1)
    h.set_xyzt_units("mm")
    return Volume(array, _grid(h), h)

def _ornt(g): return nib.io_orientation(g.affine)

def to_canonical(array, grid):
    x = np.transpose(array, (2, 1, 0))
    return np.transpose(nib.apply_orientation(x, _ornt(grid)), (2, 1, 0))

def from_canonical(array, grid):
    o = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), _ornt(grid))
    x = np.transpose(array, (2, 1, 0))
    return np.transpose(nib.apply_orientation(x, o), (2, 1, 0))

def canonical_spacing(grid):
    o = _ornt(grid)[:, 0].astype(int); z = grid.spacing[::-1]; r = [0]*3
    for i, k in enumerate(o): r[k] = z[i]
    return tuple(r[::-1])

def canonical_shape(grid):
    o = _ornt(grid)[:, 0].astype(int); z = grid.shape[::-1]; r = [0]*3
    for i, k in enumerate(o): r[k] = z[i]
    return tuple(r[::-1])

def voxel_hash(v):
    a = np.ascontiguousarray(to_canonical(v.array, v.grid))
    return blake2b(a.tobytes() + str(a.shape).encode(), digest_size=16).hexdigest()
