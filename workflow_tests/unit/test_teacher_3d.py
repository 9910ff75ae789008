"""The 3D attention teacher: the shipped config, and the whole way of a small one."""

from pathlib import Path

import numpy as np
import torch
from test_preprocess import INTENSITY
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import training

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config, Network, Teacher, load_config, merge, read_config_file
from panorgan.inference.predictor import Predictor
from panorgan.io.resources import gb
from panorgan.io.volumes import new_volume
from panorgan.networks import count_parameters
from panorgan.nnunet.case_file import save
from panorgan.nnunet.models.model import load_model, network_of
from panorgan.nnunet.plans import deep_supervision_sizes, make_dataset_json, make_plan
from panorgan.nnunet.preprocess import preprocess_image
from panorgan.nnunet.training.memory import training_memory
from panorgan.nnunet.training.train import train

CONFIG = Path(__file__).parents[2] / "config" / "teacher_3d.yaml"


def plan_of(recipe: dict) -> tuple[dict, dict]:
    plan = make_plan(recipe, ["tumour"], INTENSITY, (114, 512, 512), (2.5, 0.78, 0.78))
    return plan, make_dataset_json(["tumour"], ignore=True)


def test_the_shipped_config_costs_what_it_says():
    """The figures in its comments; it changes teacher, export and the name of the run only."""
    text = CONFIG.read_text()
    config = load_config(merge(Config().model_dump(), read_config_file(CONFIG)))
    changed = {"teacher": True, "run": True, "prediction": {"export"}}
    assert config.model_dump(exclude=changed) == Config().model_dump(exclude=changed)
    assert config.prediction.export == "smooth"
    recipe = config.teacher.model_dump()
    plan, dataset_json = plan_of(recipe)
    assert [*plan["configurations"]] == ["3d_fullres"]
    with torch.device("meta"):
        count = count_parameters(network_of(plan, dataset_json))
    assert f"{count:,} parameters" in text
    for precision, gpu in (("bf16", 16e9), ("fp32", 40e9)):
        memory = training_memory(plan, dataset_json, precision)
        assert f"{gb(memory.peak)} in {precision}" in text
        assert memory.needed < 0.95 * gpu
    smaller, _ = plan_of(recipe | {"patch_size": [40, 160, 160]})
    needed = training_memory(smaller, dataset_json, "bf16").needed
    assert f"take {gb(needed)} with allowance" in text


def test_the_non_local_blocks_weights_are_as_many_as_it_says():
    recipe = load_config(merge(Config().model_dump(), read_config_file(CONFIG))).teacher
    plan, dataset_json = plan_of(recipe.model_dump())
    *_, second, _ = deep_supervision_sizes(plan)
    assert second == (12, 24, 24)
    with FakeTensorMode():
        network = network_of(plan, dataset_json)
        block = network.decoder.stages[1].non_local
        seen = []
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
        network(torch.empty(2, 1, *recipe.patch_size))
        pooled = block.pool(torch.empty(1, 1, *second))
    assert tuple(seen[0][2:]) == second
    assert (np.prod(second), pooled.numel()) == (6912, 864)
    assert round(6912 * 864 * 4 / 1e6) == 24
    assert round(8**2 * 6912 * 864 * 4 / 1e9, 1) == 1.5


def test_a_small_one_goes_the_whole_way(tmp_path):
    """Plan, preprocessing, two iterations, labels on the image's grid."""
    recipe = Teacher(
        spacing_mm=[5.0, 2.0, 2.0],
        patch_size=[6, 20, 24],
        batch_size=2,
        network=Network(
            name="attention_unet",
            features=[4, 6, 8, 8],
            kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
        ),
        training=training(epochs=1, iterations=2, validation_iterations=1),
    ).model_dump()
    recipe["training"]["augmentation"]["mirror_axes"] = [0, 1, 2]
    plan, dataset_json = plan_of(recipe)
    rng = np.random.default_rng(0)
    array = rng.integers(-200, 200, (9, 30, 34)).astype(np.int16)
    # Stored from the left and from above: the network sees another order.
    volume = new_volume(array, (4.0, 1.5, 1.5), np.diag([-1.5, 1.5, -4.0, 1.0]))
    label = np.zeros(array.shape, np.uint8)
    label[2:6, 8:18, 9:20] = 1
    preprocessed = preprocess_image(volume, plan, label)
    assert preprocessed.data.shape == (1, 7, 22, 26)
    (tmp_path / "data").mkdir()
    save(tmp_path / "data", "case", preprocessed)
    cases = {"case": tmp_path / "data"}

    model = train(
        plan,
        dataset_json,
        cases,
        cases,
        tmp_path / "state",
        seed=0,
        card={},
        labels=load_labels(),
        device="cpu",
    )

    network = load_model(model).network
    assert isinstance(network.encoder.stages[0][0].conv, torch.nn.Conv3d)
    assert network.decoder.stages[1].non_local.norm.weight.any()  # it has learnt
    predictor = Predictor(model, device="cpu")
    predicted = predictor.predict(volume)
    assert (predicted.shape, predicted.dtype) == (array.shape, np.uint8)
    assert {*np.unique(predicted)} <= {0, 1}
