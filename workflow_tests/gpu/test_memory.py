"""Memory of a training step: what `panorgan describe --recipe` traces against what a step takes."""

import json

import pytest

from panorgan.config import Config
from panorgan.describe import describe_recipe

pytestmark = pytest.mark.gpu

STEP = """
import json, sys
from pathlib import Path
import torch
from panorgan.config import Config
from panorgan.describe import NO_INTENSITY
from panorgan.labels import load_labels
from panorgan.nnunet.plans import deep_supervision_sizes, make_dataset_json, make_plan
from panorgan.nnunet.trainer import make_trainer

name, patch, batch, precision, device, folder = sys.argv[1:]
torch.set_num_threads(1)
device, patch, batch = torch.device(device), json.loads(patch), int(batch)
labels = load_labels()
classes = [labels.tumour.name] if name == "teacher" else labels.names
recipe = getattr(Config(), name).model_dump() | {"patch_size": patch, "batch_size": batch}
plan = make_plan(recipe, classes, NO_INTENSITY, (1, 1, 1), (1, 1, 1))

def resident(key):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(key)[2].split()[0]) * 1024

trainer = make_trainer(plan, make_dataset_json(classes, ignore=True), device, Path(folder))
before = resident("VmRSS:")
trainer.initialize(precision)
trainer.network.train()
torch.backends.cudnn.benchmark = True
given = {
    "data": torch.randn(batch, 1, *patch),
    "target": [
        torch.randint(0, len(classes) + 1, (batch, 1, *size), dtype=torch.int16)
        for size in deep_supervision_sizes(plan)
    ],
}
for _ in range(3):
    float(trainer.train_step(given))
if device.type == "cuda":
    free, total = torch.cuda.mem_get_info()
    print(json.dumps({
        "peak": torch.cuda.max_memory_allocated(),
        "taken": torch.cuda.max_memory_reserved(),
        "context": total - free - torch.cuda.memory_reserved(),
    }))
else:
    print(json.dumps({"peak": resident("VmHWM:") - before, "taken": 0, "context": 0}))
"""


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_traced_and_real(name, device, start, tmp_path, record_property):
    recipe, precision = getattr(Config(), name), "bf16"
    patch, batch = recipe.patch_size, recipe.batch_size
    if device.type == "cpu":
        patch, batch = [size // 2 if size > 64 else size for size in patch], 1
    changes = {name: {"patch_size": patch, "batch_size": batch}}
    changes[name]["training"] = {"precision": precision}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(changes))  # JSON is YAML
    traced = describe_recipe(name, config)["training_gpu_memory"]
    assert traced["precision"] == precision

    arguments = (name, json.dumps(patch), batch, precision, device.type, tmp_path)
    said = start(STEP, *arguments).communicate(timeout=300)[0]
    real = json.loads(said.splitlines()[-1])
    mb = {key: value / 2**20 for key, value in real.items()}
    record_property("traced peak MiB", traced["peak_mb"])
    for key, value in mb.items():
        record_property(f"real {key} MiB", round(value))
    assert mb["peak"] + mb["context"] <= traced["needed_mb"]
    assert mb["taken"] + mb["context"] <= traced["needed_mb"]
    if device.type == "cuda":
        assert mb["peak"] == pytest.approx(traced["peak_mb"], rel=0.25)
    else:
        assert mb["peak"] >= 0.5 * traced["peak_mb"]
