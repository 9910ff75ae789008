"""What a whole prediction of the full recipe's student takes of a computer's memory.

Its weights are random, as memory does not depend on them. Each prediction is a process of its own
with 2 threads.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import cannot_run
from test_preprocess import INTENSITY

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config
from panorgan.io.processor import has_bf16
from panorgan.io.volumes import read_frame
from panorgan.nnunet.models.model import network_of, save_model
from panorgan.nnunet.plans import make_dataset_json, make_plan

WRITE = """
import sys
import numpy as np
from panorgan.io.volumes import new_volume, write_image

slices, spacing = int(sys.argv[2]), float(sys.argv[3])
blocks = np.random.default_rng(0).integers(-900, 300, (slices, 64, 64), np.int16)
image = blocks.repeat(8, 1).repeat(8, 2)
write_image(sys.argv[1], image, new_volume(image, (spacing, 0.8, 0.8)))
"""
"""In a process of its own, for the tests' has other work than to hold a large CT."""

PREDICT = """
import resource, sys

limit = int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from panorgan.inference.files import predict_files
from panorgan.inference.predictor import Predictor
from panorgan.io.resources import peak_memory
from panorgan.problems import Problems

model, image, out = sys.argv[1:4]
step = float(sys.argv[5])
predictor = Predictor(model, "cpu", "bf16", engine="openvino", threads=2, tile_step=step)
try:
    predict_files(image, out, predictor, lambda line: None)
except Problems as problems:
    sys.exit(str(problems))
print(peak_memory())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    if not has_bf16():
        cannot_run("this processor does not compute in bf16")
    # Kernels are compiled once on a machine, which takes memory, too.
    subprocess.run([sys.executable, "-c", "import panorgan.inference.files"], check=True)
    classes = load_labels().names
    recipe = Config().student.model_dump()
    plan = make_plan(recipe, classes, INTENSITY, (134, 512, 512), (2.5, 0.8, 0.8))
    dataset_json = make_dataset_json(classes, ignore=False)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, network_of(plan, dataset_json), plan, dataset_json, {})
    return folder


def write_ct(folder: Path, slices: int, spacing: float) -> Path:
    """A CT of so many slices of 512 x 512 voxels of 0.8 mm."""
    path = folder / "ct.nii.gz"
    subprocess.run([sys.executable, "-c", WRITE, path, str(slices), str(spacing)], check=True)
    return path


def predict(
    model: Path, image: Path, limit: float, step: float = 1.0
) -> subprocess.CompletedProcess:
    """`limit` is of the address space, in bytes."""
    command = [model, image, image.parent / "out", int(limit), step]
    return subprocess.run(
        [sys.executable, "-c", PREDICT, *map(str, command)], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("slices", "spacing", "most", "step"),
    # The longer one takes minutes with tiles half a patch apart.
    [(134, 2.5, 1.0e9, 0.5), (1000, 0.8, 2.0e9, 1.0)],
)
def test_a_ct_takes_what_is_promised(model, tmp_path, slices, spacing, most, step):
    image = write_ct(tmp_path, slices, spacing)
    done = predict(model, image, 8e9, step)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= most
    label = tmp_path / "out/ct.nii.gz"
    assert read_frame(label).grid.difference(read_frame(image).grid) == ""


def test_what_cannot_fit_is_a_line_before_it_starts(model, tmp_path):
    image = write_ct(tmp_path, 40, 2.5)
    done = predict(model, image, 1.4e9)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ct: {image}: its prediction needs at least 0.5 GB of memory, 0.")
    assert line.endswith(
        "; take fewer threads, check the image's spacing, or use a machine with "
        "more (mem_mb of a job)"
    )
    assert not (tmp_path / "out").exists()
