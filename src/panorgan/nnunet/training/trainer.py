"""nnU-Net's trainer with our network, optimizer, batches and precision, all taken from the plan."""

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from panorgan.networks.fast import channels_last, use_fast_layers
from panorgan.nnunet.bf16 import usable_precision
from panorgan.nnunet.devices import autocast
from panorgan.nnunet.plans import configuration_of, deep_supervision_sizes
from panorgan.nnunet.training.augmentation import (
    initial_patch_size,
    training_transforms,
    validation_transforms,
)
from panorgan.nnunet.training.batches import TRAINING, VALIDATION, Batches, CaseFolders
from panorgan.nnunet.training.device_augmentation import BatchAugmentation
from panorgan.nnunet.training.losses import DiceAndCrossEntropy, deep_supervision_weights
from panorgan.nnunet.training.optimizers import make_optimizer

Folders = Mapping[str, str | Path]
Unknown = Mapping[str, Collection[int]] | None


def learning_rate(training: Mapping[str, Any], epoch: int, iteration: int) -> float:
    """The rate of an iteration: polynomial in the epoch, rising over the first iterations.

    Parameters
    ----------
    training
        The recipe's section `training`.
    epoch, iteration
        Counted from 0; the iteration within its epoch.
    """
    optimizer = training["optimizer"]
    rate = optimizer["learning_rate"] * (1 - epoch / training["epochs"]) ** optimizer["poly_power"]
    done = epoch * training["iterations"] + iteration + 1
    return rate * min(1.0, done / max(1, optimizer["warmup_iterations"]))


@dataclass(frozen=True)
class Setting:
    """A way to compute steps: faster or slower, with the same result but for rounding."""

    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = [name for name, on in vars(self).items() if on]
        return " and ".join(parts).replace("_", " ") or "plain"


class StepLoss:
    """The loss of a step, for which nobody waits until it is asked for with `float`.

    Meanwhile the next step can be handed to the GPU, which then never stands idle between steps.
    """

    def __init__(self, loss: torch.Tensor):
        self._loss = loss.to("cpu", non_blocking=True)
        self._there = None
        if loss.is_cuda:
            self._there = torch.cuda.Event()
            self._there.record()

    def __float__(self) -> float:
        if self._there:
            self._there.synchronize()
        return float(self._loss)


class Trainer(nnUNetTrainer):
    """Steps and their ingredients; the loop around them is `panorgan.nnunet.training.train`'s.

    The network, the deep-supervision scales and the loss (Dice and cross-entropy with the plan's
    `batch_dice`) are nnU-Net's; the loss is blind to ignored voxels and, where a batch says so, to
    classes that are unknown in a case (`panorgan.nnunet.training.losses`).

    Make one with `make_trainer`, then call `initialize`.
    """

    # nnU-Net's constructor asks for exactly these arguments.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: str,
        dataset_json: dict,
        device: torch.device,
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        recipe = plans["panorgan"]["recipe"]
        self.training: dict[str, Any] = recipe["training"]
        self.patch_size: list[int] = list(self.configuration_manager.patch_size)
        self.precision = "fp32"

    def print_to_log_file(self, *args: Any, **_: Any) -> None:
        """Print: the job's output is its log."""
        print(*args, flush=True)

    def _do_i_compile(self) -> bool:
        return False

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        """nnU-Net's, for patches too whose size is no multiple of the strides."""
        sizes = deep_supervision_sizes(self.plans_manager.plans)
        return (np.array(sizes) / self.patch_size).tolist()

    def initialize(self, precision: str, augment_on: str = "workers") -> None:
        """Build network, optimizer and loss; the weights come from torch's global generator.

        `precision` and `augment_on` are resolved, see `panorgan.nnunet.devices`; bf16 becomes fp32
        if this processor does not compute the network in it rightly.
        """
        self.augment_on = augment_on
        self.batch_size = self.configuration_manager.batch_size
        self.network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            len(self.dataset_json["channel_names"]),
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        shape = (self.batch_size, len(self.dataset_json["channel_names"]), *self.patch_size)
        one_on_cpu = self.device.type == "cpu" and self.batch_size == 1
        self.precision = usable_precision(
            self.network, shape, precision, gradients=True, channels_last=one_on_cpu
        )
        if one_on_cpu:
            use_fast_layers(self.network)
        self._always_last = one_on_cpu and self.precision == "bf16"
        self.use(Setting())
        self.loss = DiceAndCrossEntropy(
            batch_dice=self.configuration_manager.batch_dice,
            ignore=len(self.plans_manager.plans["panorgan"]["classes"]) + 1,
            weights=deep_supervision_weights(len(self._get_deep_supervision_scales())),
        )
        self.optimizer = self.make_optimizer()
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def use(self, setting: Setting) -> None:
        """Compute steps in this way from now on."""
        self.setting = setting
        last = setting.channels_last or self._always_last
        dim = len(self.patch_size)
        self._memory_format = channels_last(dim) if last else torch.contiguous_format
        self.network.to(memory_format=self._memory_format)
        self._train_forward = self.network
        if setting.compiled:
            self._train_forward = torch.compile(self.network, dynamic=False)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimizer of the network's parameters."""
        return make_optimizer(self.network.parameters(), self.training["optimizer"])

    def training_batches(self, folders: Folders, seed: int, unknown: Unknown = None) -> Batches:
        """Batches of these cases, augmented here or later; arguments as those of `CaseFolders`."""
        augmentation = self.training["augmentation"]
        changes = self.patch_size, augmentation, self._get_deep_supervision_scales()
        transforms = None
        if self.augment_on == "device":
            self._augment = BatchAugmentation(*changes)
        else:
            transforms = training_transforms(*changes)
        size = initial_patch_size(self.patch_size, augmentation)
        cases = CaseFolders(folders, unknown)
        return self._batches(cases, size, transforms, seed, TRAINING)

    def validation_batches(self, folders: Folders, seed: int, unknown: Unknown = None) -> Batches:
        """Batches of these cases as they are."""
        transforms = validation_transforms(self._get_deep_supervision_scales())
        cases = CaseFolders(folders, unknown)
        return self._batches(cases, self.patch_size, transforms, seed, VALIDATION)

    def _batches(self, cases: CaseFolders, size, transforms, seed: int, stream: int) -> Batches:
        loader = nnUNetDataLoader(
            cases,
            self.batch_size,
            size,
            self.patch_size,
            self.label_manager,
            self.training["oversample_foreground"],
            # nnU-Net takes the last patches of a batch for foreground; a single one is left to
            # chance, for otherwise the share would be rounded to none or all.
            probabilistic_oversampling=self.batch_size == 1,
            transforms=transforms,
        )
        # Patches lie where they would without an ignore label: nnU-Net would centre each of them on
        # an annotated voxel instead, which few ignored voxels are no reason for.
        loader.has_ignore = False
        outputs = self.label_manager.num_segmentation_heads
        return Batches(loader, cases, outputs, seed=seed, stream=stream)

    def train_step(self, batch: Mapping[str, Any]) -> StepLoss:
        """One update of the weights.

        Returns
        -------
        loss : StepLoss
            NaN if the loss or, without a gradient scaler, a gradient is not finite. The weights
            are then spoilt.
        """
        data, target, unknown = self._to_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self._forward(data), target, unknown)
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.network.parameters(), self.training["optimizer"]["gradient_clip"]
        )
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        finite = loss.detach().isfinite()
        if not self.grad_scaler.is_enabled():
            # The scaler skips a step whose scaled gradients overflow, and lowers the scale.
            finite &= norm.isfinite()
        return StepLoss(torch.where(finite, loss.detach(), torch.nan))

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any]) -> tuple[float, np.ndarray]:
        """Look at a batch; the network has to be in evaluation mode.

        Returns
        -------
        loss : float
        counts : (3, classes) float64 array
            Voxels of each class but the background: hits, false ones, missed ones. Ignored voxels
            do not count, nor does a class where it is unknown.
        """
        data, target, unknown = self._to_device(batch)
        output = self._forward(data)
        loss = self.loss(output, target, unknown).item()
        truth = target[0].long()
        predicted = output[0].argmax(1, keepdim=True)
        hidden = truth == self.loss.ignore
        counts = []
        for value in range(1, output[0].shape[1]):
            said, true = (predicted == value) & ~hidden, truth == value
            if unknown is not None:
                said &= ~unknown[:, value].view(-1, *(1 for _ in said.shape[1:]))
            counts += [(said & true).sum(), (said & ~true).sum(), (~said & true).sum()]
        return loss, torch.stack(counts).double().cpu().numpy().reshape(-1, 3).T

    def _to_device(
        self, batch: Mapping[str, Any]
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        move = {"device": self.device, "non_blocking": True}
        data, target, unknown = batch["data"].to(**move), batch["target"], batch.get("unknown")
        if "key" in batch:
            data, target = self._augment(data, target.to(**move), batch["key"])
        else:
            target = [labels.to(**move) for labels in target]
        return data, target, None if unknown is None else unknown.to(**move)

    def _forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        # Looking at validation batches would compile the network once more.
        forward = self._train_forward if self.network.training else self.network
        with autocast(self.device, self.precision):
            return forward(data.to(memory_format=self._memory_format))


def make_trainer(plan: dict, dataset_json: dict, device: torch.device, state: Path) -> Trainer:
    """A trainer for a plan. nnU-Net's constructor makes folders: they are gone when this returns.

    Parameters
    ----------
    plan, dataset_json
        As `panorgan.nnunet.plans` makes them.
    state
        The only folder in which anything is written.
    """
    configuration, _ = configuration_of(plan)
    plans = {**deepcopy(plan), "continue_training": False}
    with (
        tempfile.TemporaryDirectory(dir=state, prefix=".nnunet-") as folder,
        _environment(nnUNet_results=folder, nnUNet_wandb_enabled="0"),
    ):
        return Trainer(plans, configuration, "all", dataset_json, device)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for a block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
