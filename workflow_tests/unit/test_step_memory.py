"""Memory of a training: what is traced without contents is what a real step holds."""

import math
import resource

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import plan_of, run, student, teacher

from panorgan.config.settings import Config
from panorgan.networks.blocks import NonLocal
from panorgan.nnunet.models.model import network_of
from panorgan.nnunet.plans import deep_supervision_sizes
from panorgan.nnunet.training.losses import DiceAndCrossEntropy, deep_supervision_weights
from panorgan.nnunet.training.memory import (
    ALLOWANCE,
    Living,
    check_training_memory,
    training_memory,
)
from panorgan.problems import Problems

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPES = {"teacher": teacher, "student": student}


def changed(recipe: dict, **changes) -> tuple[dict, dict]:
    return plan_of(recipe | changes)


class TestLiving:
    """Counted by hand; a float32 has 4 bytes."""

    def test_storages_count_once_and_until_they_end(self):
        with Living() as living:
            a = torch.zeros(100)
            b = a.view(10, 10).t()  # the same storage
            c = torch.empty(50, dtype=torch.int16)
            assert living.now == 400 + 100
            del a
            assert living.now == 500
            b.add_(1)
            assert living.now == 500
            d = b + b
            del b, d
            assert (living.now, living.peak) == (100, 900)
            del c
            assert living.now == 0

    @pytest.mark.parametrize("fake", [False, True])
    def test_what_the_backward_pass_needs_stays(self, fake):
        with FakeTensorMode() if fake else torch.enable_grad(), Living() as living:
            x = torch.zeros(1000, requires_grad=True)
            y = x.exp().exp()  # each keeps its result
            assert living.now == 3 * 4000
            z = (y + 1).sum()  # an addition keeps nothing
            assert living.now == 3 * 4000 + 4
            z.backward()
            assert x.grad.shape == (1000,)
            del y, z
            assert living.now == 2 * 4000

    @pytest.mark.parametrize(("size", "weights"), [((8, 12), 96 * 24), ((4, 6, 8), 192 * 24)])
    def test_non_local_keeps_its_weights(self, size, weights):
        """Positions squared / 2^dim float32 a sample, kept once, and twice while they are made."""

        def kept(batch: int) -> tuple[int, int]:
            with FakeTensorMode(), Living() as living:
                block = NonLocal(len(size), 4)  # one inner channel
                x = torch.zeros(batch, 4, *size)
                before = living.now
                living.peak = 0
                y = block(x)
                assert y.shape == x.shape
                return living.now - before, living.peak - before

        n = math.prod(size)
        pooled = n // 2 ** len(size)
        # One channel: theta, phi, g and the mixed values, pooled phi and g and (int64) where their
        # maxima were. Four channels: the output convolution and, as `y` lives, the sum.
        others = 4 * n * 4 + 2 * pooled * (4 + 8) + 2 * 4 * n * 4
        assert kept(3)[0] - kept(2)[0] == weights * 4 + others
        assert kept(3)[1] - kept(2)[1] >= 2 * weights * 4


@pytest.mark.parametrize("name", RECIPES)
def test_activations_are_what_a_real_forward_pass_saves(name):
    """Storages that autograd saves, measured on real tensors, and the outputs themselves."""
    plan, dataset_json = plan_of(RECIPES[name]())
    network = network_of(plan, dataset_json).train()
    network.decoder.deep_supervision = True
    image = torch.randn(plan["panorgan"]["recipe"]["batch_size"], 1, *_patch(plan))
    own = {t.untyped_storage()._cdata for t in (image, *network.state_dict().values())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(image)
        for output in outputs:
            keep(output)
    measured = sum(storage.nbytes() for storage in saved.values())

    traced = training_memory(plan, dataset_json, "fp32")

    assert traced.activations == pytest.approx(measured, rel=1e-3)
    assert measured > 50_000
    parameters = sum(p.nbytes for p in network.parameters())
    assert traced.gradients == parameters
    assert traced.parameters == sum(t.nbytes for t in network.state_dict().values())
    assert traced.optimizer == pytest.approx(2 * parameters, rel=0.01)  # AdamW


@pytest.mark.parametrize("name", RECIPES)
def test_the_peak_is_that_of_a_real_step(name):
    plan, dataset_json = plan_of(RECIPES[name]())
    recipe = plan["panorgan"]["recipe"]
    traced = training_memory(plan, dataset_json, "fp32")
    sizes = deep_supervision_sizes(plan)
    loss = DiceAndCrossEntropy(
        batch_dice=False, ignore=3, weights=deep_supervision_weights(len(sizes))
    )
    with Living() as living:
        network = network_of(plan, dataset_json).train()
        network.decoder.deep_supervision = True
        optimizer = torch.optim.AdamW(network.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            image = torch.zeros(recipe["batch_size"], 1, *recipe["patch_size"])
            targets = [torch.zeros(len(image), 1, *size, dtype=torch.int16) for size in sizes]
            loss(network(image), targets).backward()
            optimizer.step()
    # Other kernels than with contents, perhaps, but no other network.
    assert traced.peak == pytest.approx(living.peak, rel=0.05)


def _patch(plan):
    return plan["panorgan"]["recipe"]["patch_size"]


def test_output_sizes_are_the_networks():
    plan, dataset_json = changed(student(), patch_size=[5, 18, 21])
    network = network_of(plan, dataset_json)
    network.decoder.deep_supervision = True
    shapes = [tuple(out.shape[2:]) for out in network(torch.zeros(1, 1, 5, 18, 21))]
    assert deep_supervision_sizes(plan) == shapes == [(5, 18, 21), (5, 9, 11)]


def test_what_it_grows_with():
    small, large = (
        training_memory(*changed(teacher(), batch_size=size), "fp32") for size in (2, 4)
    )
    assert large.batch == 2 * small.batch
    assert large.activations == pytest.approx(2 * small.activations, rel=0.01)
    assert (large.parameters, large.optimizer) == (small.parameters, small.optimizer)
    half = training_memory(*changed(student()), "bf16")
    whole = training_memory(*changed(student()), "fp32")
    assert 0.4 * whole.activations < half.activations < 0.7 * whole.activations
    plan, dataset_json = changed(student())
    plan["panorgan"]["unknown"] = "marginal"
    assert training_memory(plan, dataset_json, "fp32").peak >= whole.peak
    assert whole.needed == whole.peak + ALLOWANCE + round(0.1 * whole.peak)


@pytest.mark.parametrize(("name", "peak_mb"), [("teacher", 5821), ("student", 2170)])
def test_the_full_recipe_is_traced_without_memory(name, peak_mb):
    recipe = getattr(Config(), name).model_dump()
    classes = ["tumour"] if name == "teacher" else [f"organ-{i}" for i in range(14)]
    plan, _ = plan_of(recipe)
    plan["panorgan"]["classes"] = classes
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": dict(zip(["background", *classes], range(15), strict=False)),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = training_memory(plan, dataset_json, "fp32")
    assert memory.peak / 2**20 == pytest.approx(peak_mb, rel=0.05)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    # At least one float32 image of the widest stage's channels for each of its four layers.
    widest = (
        recipe["batch_size"] * math.prod(recipe["patch_size"]) * recipe["network"]["features"][0]
    )
    assert memory.activations > 4 * 4 * widest


class TestRefusal:
    def test_of_a_gpu_that_is_too_small(self):
        plan, dataset_json = plan_of(teacher())
        needed = training_memory(plan, dataset_json, "fp32").needed
        there = plan, dataset_json, "fp32", GPU
        check_training_memory(*there, gpu_total=lambda device: needed)
        with pytest.raises(Problems) as error:
            check_training_memory(*there, gpu_total=lambda device: needed - 1)
        assert str(error.value) == (
            "a training step in fp32 needs about 1.1 GB (0.0 GB for the network and its batch), "
            "the GPU has 1.1 GB; lower batch_size (3) or patch_size ([16, 16]) of this network in "
            "the config"
        )

    def test_of_too_little_main_memory(self):
        plan, dataset_json = plan_of(student())
        with pytest.raises(Problems, match=r"of main memory there is free 0\.5 GB; lower "):
            check_training_memory(plan, dataset_json, "fp32", CPU, main=lambda: 5e8)

    def test_before_anything_is_trained(self, tmp_path, monkeypatch):
        monkeypatch.setitem(check_training_memory.__kwdefaults__, "main", lambda: 1e6)
        with pytest.raises(Problems, match=r"a training step in fp32 needs about 1\.1 GB"):
            run(tmp_path, {"no such case": tmp_path})
