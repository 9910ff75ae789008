"""The optimizer of a recipe."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, as the recipe's section `training.optimizer` says."""
    common = {"lr": settings["learning_rate"], "weight_decay": settings["weight_decay"]}
    if settings["name"] == "adamw":
        return torch.optim.AdamW(parameters, **common)
    momentum = settings["momentum"]
    return torch.optim.SGD(parameters, momentum=momentum, nesterov=momentum > 0, **common)
