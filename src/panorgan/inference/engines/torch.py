"""A network computed by PyTorch, on a GPU or the CPU."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch

from panorgan.io.allocation import kept_memory
from panorgan.networks.fast import channels_last, to_fast_form
from panorgan.nnunet.bf16 import usable_precision
from panorgan.nnunet.devices import autocast
from panorgan.nnunet.models.model import network_of
from panorgan.nnunet.plans import configuration_of, make_dataset_json


class TorchEngine:
    """An `Engine`: on the CPU a tile after the other, by all threads, in the network's fast form.

    Parameters
    ----------
    plan, tensors
        Of a model, as `panorgan.nnunet.models.files.read_model` gives them.
    device
        cpu or cuda.
    precision
        A resolved one, see `panorgan.nnunet.devices`. bf16 becomes fp32, with a line, if this
        processor does not compute the network in it rightly.
    threads
        CPU threads.

    Attributes
    ----------
    place : torch.device
        Where the network is.
    at_once : int
        How many tiles it takes together.
    """

    name = "torch"

    def __init__(
        self,
        plan: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        device: str,
        precision: str,
        threads: int,
    ):
        dataset_json = make_dataset_json(plan["panorgan"]["classes"], ignore=False)
        configuration = configuration_of(plan)[1]
        patch_size = configuration["patch_size"]
        self.place, self._threads = torch.device(device), threads
        self._dim = len(patch_size)
        self.device = device
        self._network = network_of(plan, dataset_json).eval()
        weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        self._network.load_state_dict(weights, strict=False)  # some have several names
        self.precision, self.at_once = precision, 1
        if self.place.type == "cpu":
            shape = (1, len(dataset_json["channel_names"]), *patch_size)
            with self._threading():
                self.precision = usable_precision(
                    self._network, shape, precision, channels_last=True
                )
            to_fast_form(self._network, self._dim, self.precision)
        else:
            self.device = torch.cuda.get_device_name(self.place)
            self._network.to(self.place)
            if self._dim == 2:
                self.at_once = configuration["batch_size"]

    @contextmanager
    def _threading(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, outputs, *patch) of (batch, channels, *patch) float32, both on `place`."""
        if self.place.type == "cpu":
            images = images.to(memory_format=channels_last(self._dim))
        # Autocast also where weights are bf16 already: on a CPU some layers have no bf16.
        with self._threading(), torch.inference_mode(), autocast(self.place, self.precision):
            return self._network(images)

    def scores(self, tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `Engine.scores` says."""
        with kept_memory() if self.place.type == "cpu" else nullcontext():
            yield from self._scores(iter(tiles))

    def _scores(self, tiles: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        while batch := list(islice(tiles, self.at_once)):
            images = torch.stack([torch.from_numpy(tile) for tile in batch])
            found = self.logits(images.to(self.place)).movedim(1, -1)
            if found.dtype == torch.bfloat16:
                yield from found.contiguous().cpu().view(torch.int16).numpy().view(np.uint16)
            else:
                yield from found.float().contiguous().cpu().numpy()
