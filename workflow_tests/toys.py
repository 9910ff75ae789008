"""Toy networks, cases and trainings: seconds on a CPU, on any device the same calls."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from panorgan.config.labels import load_labels
from panorgan.config.settings import Network, Optimizer, Student, Teacher, Training
from panorgan.nnunet.case_file import save
from panorgan.nnunet.models.model import network_of, save_model
from panorgan.nnunet.plans import make_dataset_json, make_plan
from panorgan.nnunet.preprocess import Preprocessed
from panorgan.nnunet.training.train import train

CLASSES = ["liver", "tumour"]
INTENSITY = {"mean": 0, "std": 1, "median": 0, "min": -1, "max": 1} | {
    "percentile_00_5": -1,
    "percentile_99_5": 1,
}
EPOCHS, ITERATIONS = 3, 4


def training(**changes) -> Training:
    """A schedule of seconds."""
    settings = {
        "epochs": EPOCHS,
        "iterations": ITERATIONS,
        "validation_iterations": 2,
        "batch_dice": False,
        "optimizer": Optimizer(name="adamw", learning_rate=0.01, warmup_iterations=3),
        "precision": "fp32",
        "checkpoint_every_s": 0.0,
        "threads": 1,
        "workers": 0,
    }
    return Training(**(settings | changes))


def teacher(**changes) -> dict:
    """A 2D attention network with dropout and batch norm, so that both have to be restored."""
    return Teacher(
        spacing_mm=[4.0, 4.0],
        patch_size=[16, 16],
        batch_size=3,
        network=Network(
            name="attention_unet",
            features=[4, 4, 8],
            kernel_sizes=[[3, 3]] * 3,
            strides=[[1, 1], [2, 2], [2, 2]],
        ),
        training=training(**changes),
    ).model_dump()


def student(**changes) -> dict:
    return Student(
        spacing_mm=[6.0, 4.0, 4.0],
        patch_size=[4, 16, 16],
        batch_size=1,
        network=Network(
            name="small_unet",
            features=[4, 8, 8],
            kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        ),
        training=training(**changes),
    ).model_dump()


def plan_of(
    recipe: dict, ignore: bool = False, classes: Sequence[str] = CLASSES
) -> tuple[dict, dict]:
    plan = make_plan(recipe, classes, INTENSITY, (8, 24, 24), (6.0, 4.0, 4.0))
    return plan, make_dataset_json(classes, ignore)


def write_model(
    folder: Path, classes: Sequence[str] = CLASSES, patch_size: Sequence[int] = (4, 16, 16)
) -> None:
    """A student's model folder, its weights random and always the same."""
    torch.manual_seed(0)
    plan, dataset_json = plan_of(student() | {"patch_size": [*patch_size]}, classes=classes)
    save_model(folder, network_of(plan, dataset_json), plan, dataset_json, {"seed": 0})


def write_case(folder: Path, case: str, seed: int) -> None:
    """A bright block and a brighter one in noise: learnable from the intensity alone."""
    random = np.random.default_rng(seed)
    label = np.zeros((1, 8, 24, 24), np.int16)
    y, x = random.integers(2, 8, 2)
    label[0, 1:7, y : y + 12, x : x + 12] = 1
    label[0, 3:6, y + 3 : y + 9, x + 3 : x + 9] = 2
    data = label + random.normal(0, 0.2, label.shape)
    locations = {value: np.argwhere(label == value).astype(np.int16) for value in (1, 2)}
    folder.mkdir(parents=True, exist_ok=True)
    properties = {"class_locations": locations}
    save(folder, case, Preprocessed(data.astype(np.float32), label, properties, (16, 16)))


def run(state: Path, cases, validation=None, recipe=None, seed=0, **more) -> Path:
    plan, dataset_json = plan_of(recipe or teacher())
    given = {"card": {"cases": len(cases)}, "labels": load_labels(), "device": "cpu"} | more
    return train(plan, dataset_json, cases, validation or {}, state, seed=seed, **given)


def checksum(model: Path) -> str:
    return json.loads((model / "card.json").read_text())["checksum"]


def curve(folder: Path) -> list[dict]:
    """Rows of the curve without their times."""
    times = ("seconds", "wait_s")
    with open(folder / "progress.csv") as file:
        return [{k: v for k, v in row.items() if k not in times} for row in csv.DictReader(file)]


class Runs:
    """What a malicious pickle does: when read, it calls."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call
