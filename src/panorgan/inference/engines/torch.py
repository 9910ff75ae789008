"""A network computed by PyTorch, on a GPU or the CPU."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch

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
    network : torch.nn.Module
        Takes (batch, channels, *patch) on its device, within `computing`, and gives
        (batch, outputs, *patch).
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
        self._place, self._threads = torch.device(device), threads
        self._dim = len(patch_size)
        self.device = device
        self.network = network_of(plan, dataset_json).eval()
        weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        self.network.load_state_dict(weights, strict=False)  # some have several names
        self.precision, self._at_once = precision, 1
        if self._place.type == "cpu":
            shape = (1, len(dataset_json["channel_names"]), *patch_size)
            with self.computing():
                self.precision = usable_precision(
                    self.network, shape, precision, channels_last=True
                )
            to_fast_form(self.network, self._dim, self.precision)
        else:
            self.device = torch.cuda.get_device_name(self._place)
            self.network.to(self._place)
            if self._dim == 2:
                self._at_once = configuration["batch_size"]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Where the network may be called."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)

    def scores(self, tiles: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `Engine.scores` says."""
        tiles = iter(tiles)
        while batch := list(islice(tiles, self._at_once)):
            yield from self._scores(batch)

    def _scores(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        with self.computing():
            images = torch.stack([torch.from_numpy(tile) for tile in batch])
            if self._place.type == "cpu":
                images = images.to(memory_format=channels_last(self._dim))
            # Also where weights are bf16 already: on a CPU some layers have no bf16.
            with autocast(self._place, self.precision):
                found = self.network(images.to(self._place))
            if found.dtype != torch.bfloat16:
                found = found.float()
            found = found.movedim(1, -1).contiguous().cpu()
            if found.dtype == torch.bfloat16:
                return found.view(torch.int16).numpy().view(np.uint16)
            return found.numpy()
