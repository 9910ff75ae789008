"""Memory of a training step: what `panorgan describe --recipe` traces against what a step takes."""

import json
from pathlib import Path

import pytest

from panorgan.config.settings import read_config_file
from panorgan.inference.describe import describe_recipe

pytestmark = pytest.mark.gpu

STEPS = """
import json, sys
from pathlib import Path
import torch
from panorgan.config.settings import Config, load_config, merge, read_config_file
from panorgan.inference.describe import NO_INTENSITY
from panorgan.config.labels import load_labels
from panorgan.nnunet.plans import deep_supervision_sizes, make_dataset_json, make_plan
from panorgan.nnunet.training.trainer import make_trainer

config, device, folder = sys.argv[1:]
torch.set_num_threads(1)
torch.backends.cudnn.benchmark = True
device, labels = torch.device(device), load_labels()
config = load_config(merge(Config().model_dump(), read_config_file(config)))

def resident(key):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(key)[2].split()[0]) * 1024

def step(recipe, classes):
    patch, batch = recipe.patch_size, recipe.batch_size
    plan = make_plan(recipe.model_dump(), classes, NO_INTENSITY, (1, 1, 1), (1, 1, 1))
    trainer = make_trainer(plan, make_dataset_json(classes, ignore=True), device, Path(folder))
    before = resident("VmRSS:")
    trainer.initialize(recipe.training.precision)
    trainer.network.train()
    given = {
        "data": torch.randn(batch, 1, *patch),
        "target": [
            torch.randint(0, len(classes) + 1, (batch, 1, *size), dtype=torch.int16)
            for size in deep_supervision_sizes(plan)
        ],
    }
    for _ in range(3):
        float(trainer.train_step(given))
    if device.type == "cpu":
        grown = resident("VmHWM:") - before
        return {"peak": grown, "taken": grown}
    # What cuDNN tried in the first steps is not what a step takes.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    float(trainer.train_step(given))
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "taken": torch.cuda.max_memory_reserved(),
    }

found = {"student": step(config.student, labels.names)}
found["teacher"] = step(config.teacher, [labels.tumour.name])
print(json.dumps(found))
"""
CONTEXT_MB = 600
"""What CUDA itself takes of a GPU for a process."""


def test_traced_and_real(device, start, tmp_path, record_property):
    """On a GPU the full recipe's steps, on a CPU the demo's."""
    on_gpu, precision = device.type == "cuda", "bf16"
    demo = read_config_file(Path(__file__).parents[2] / "config/demo.yaml")
    recipes = {name: {} if on_gpu else demo[name] for name in ("student", "teacher")}
    for recipe in recipes.values():
        recipe["training"] = {**recipe.get("training", {}), "precision": precision}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(recipes))  # JSON is YAML

    said = start(STEPS, config, device.type, tmp_path).communicate(timeout=300)[0]
    for name, found in json.loads(said.splitlines()[-1]).items():
        traced = describe_recipe(name, config)["training_gpu_memory"]
        assert traced["precision"] == precision
        real = {key: value / 2**20 for key, value in found.items()}
        record_property(f"{name}: MB of a step, traced", traced["peak_mb"])
        record_property(f"{name}: MB of a step, real", round(real["peak"]))
        record_property(f"{name}: MB that are asked for", traced["needed_mb"])
        record_property(f"{name}: MB that were taken", round(real["taken"]))
        assert real["taken"] + (CONTEXT_MB if on_gpu else 0) <= traced["needed_mb"]
        assert real["peak"] >= 0.75 * traced["peak_mb"]
