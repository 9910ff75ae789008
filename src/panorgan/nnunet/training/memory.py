"""How much memory a training will take, known before it starts and without the hardware.

One step (forward, loss, backward, clipping, update) runs on tensors that have shapes and types but
no contents, and every storage is counted from its making to its end. So the figure follows the
network, the plan and the precision, not a rule of thumb.
"""

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from panorgan.io.resources import available_memory, gb
from panorgan.nnunet.devices import autocast
from panorgan.nnunet.models.model import network_of
from panorgan.nnunet.plans import configuration_of, deep_supervision_sizes
from panorgan.nnunet.training.losses import DiceAndCrossEntropy, deep_supervision_weights
from panorgan.nnunet.training.optimizers import make_optimizer
from panorgan.problems import Problems

ALLOWANCE = 2**30
ALLOWANCE_SHARE = 0.1
"""What tracing cannot see, as bytes and as a share of the peak: CUDA's context, cuDNN's work space,
gaps between blocks, augmentation; on a CPU Python, libraries and batches that wait.
"""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step; all but `allowance` are traced.

    Attributes
    ----------
    parameters, optimizer, batch
        Weights with running statistics, the optimizer's state, image and targets of a batch.
    activations
        What the forward pass leaves for the backward pass, copies of weights in half precision
        included.
    gradients
        Of the parameters; at the peak only some of them exist.
    peak
        The most that lives at once.
    allowance
        For what is not traced.
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    gradients: int
    peak: int

    @property
    def allowance(self) -> int:
        return ALLOWANCE + round(ALLOWANCE_SHARE * self.peak)

    @property
    def needed(self) -> int:
        """Peak and allowance."""
        return self.peak + self.allowance


def training_memory(
    plan: Mapping[str, Any], dataset_json: Mapping[str, Any], precision: str
) -> TrainingMemory:
    """Trace a training step of a plan.

    Parameters
    ----------
    plan, dataset_json
        As `panorgan.nnunet.plans` makes them.
    precision
        fp32, bf16 or fp16. Half precision is traced with the CPU's list of operations, which keeps
        the gates' resized signals in float32 where a GPU would not: a little too much.
    """
    text = json.dumps({"plan": plan, "dataset": dataset_json}, sort_keys=True)
    return _traced(text, precision)


@cache
def _traced(text: str, precision: str) -> TrainingMemory:
    given = json.loads(text)
    plan, dataset_json = given["plan"], given["dataset"]
    configuration = configuration_of(plan)[1]
    recipe, patch_size = plan["panorgan"]["recipe"], configuration["patch_size"]
    batch_size, channels = configuration["batch_size"], len(dataset_json["channel_names"])
    with FakeTensorMode(), Living() as living:
        network = network_of(plan, dataset_json)
        network.decoder.deep_supervision = True
        parameters = living.now
        optimizer = _optimizer(network, recipe["training"]["optimizer"])
        optimizer_state = living.now - parameters
        image = torch.zeros(batch_size, channels, *patch_size)
        sizes = deep_supervision_sizes(plan)
        targets = [torch.zeros(batch_size, 1, *size, dtype=torch.int16) for size in sizes]
        unknown = None
        if plan["panorgan"].get("unknown") == "marginal":
            unknown = torch.zeros(batch_size, len(plan["panorgan"]["classes"]) + 1).bool()
        loss = DiceAndCrossEntropy(
            batch_dice=configuration["batch_dice"],
            ignore=len(plan["panorgan"]["classes"]) + 1,
            weights=deep_supervision_weights(len(sizes)),
        )
        held = living.now
        living.peak = held
        with autocast(torch.device("cpu"), "fp32" if precision == "fp32" else "bf16"):
            outputs = network(image)
        activations = living.now - held
        loss(outputs, targets, unknown).backward()
        del outputs
        gradients = sum(p.numel() * p.element_size() for p in network.parameters())
        clip = recipe["training"]["optimizer"]["gradient_clip"]
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        return TrainingMemory(
            parameters=parameters,
            optimizer=optimizer_state,
            batch=held - parameters - optimizer_state,
            activations=activations,
            gradients=gradients,
            peak=living.peak,
        )


def _optimizer(network: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The recipe's optimizer as it is after its first step."""
    optimizer = make_optimizer(network.parameters(), settings)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


class Living(TorchDispatchMode):
    """Counts the bytes of all storages that operations make inside of the block.

    Attributes
    ----------
    now, peak : int
        Bytes that live, and the most that lived at once; `peak` may be set.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # The storage's own address: Python's objects for it come and go.
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def check_training_memory(
    plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    precision: str,
    device: torch.device,
    *,
    gpu_total: Callable[[torch.device], float] = lambda device: torch.cuda.mem_get_info(device)[1],
    main: Callable[[], float] = available_memory,
) -> None:
    """Refuse a training that the device's memory cannot hold.

    Parameters
    ----------
    plan, dataset_json
        As `panorgan.nnunet.plans` makes them.
    precision, device
        In which and where it would run.
    gpu_total, main
        Tell the bytes of a GPU and of free main memory.

    Raises
    ------
    Problems
        With both figures and the values to lower.
    """
    memory = training_memory(plan, dataset_json, precision)
    on_gpu = device.type == "cuda"
    there = gpu_total(device) if on_gpu else main()
    if there >= memory.needed:
        return
    configuration = configuration_of(plan)[1]
    where = "the GPU has" if on_gpu else "of main memory there is free"
    cause = (
        f"a training step in {precision} needs about {gb(memory.needed)} "
        f"({gb(memory.peak)} for the network and its batch), {where} {gb(there)}"
    )
    cure = (
        f"lower batch_size ({configuration['batch_size']}) or patch_size "
        f"({configuration['patch_size']}) of this network in the config"
    )
    raise Problems.one(cause, cure)
