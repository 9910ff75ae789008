"""The optimizer of a recipe."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, as the recipe's section `training.optimizer` says."""
    parameters = list(parameters)
    common = {
        "lr": settings["learning_rate"],
        "weight_decay": settings["weight_decay"],
        # On a GPU in one kernel, which also looks at the gradients' overflow without a wait.
        "fused": parameters[0].is_cuda,
    }
    if settings["name"] == "adamw":
        return torch.optim.AdamW(parameters, **common)
    momentum = settings["momentum"]
    return torch.optim.SGD(parameters, momentum=momentum, nesterov=momentum > 0, **common)
