"""The configurations of plans of nnU-Net 2, as its own plans manager resolves them."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from panorgan.nnunet.models.stock import PACKAGE, unet_arguments

_OLD_KEYS = (
    *("UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "num_pool_per_axis"),
    *("n_conv_per_stage_encoder", "n_conv_per_stage_decoder"),
    *("conv_kernel_sizes", "pool_op_kernel_sizes"),
)
"""How plans told of a network before they had its class and arguments under `architecture`."""

_OLD_UNETS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_unet"}
"""Networks of such plans, and the module in which nnU-Net looks for them."""


def resolve(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits, and with its network under ``architecture``.

    Raises
    ------
    LookupError, TypeError, ValueError
        If the plan has not this configuration, or one that it inherits from, or is no plan.
    """
    configurations = plan["configurations"]
    chain: list[str] = []
    heir: str | None = name
    while heir is not None:
        if heir not in configurations:
            raise LookupError(f"its plan has no configuration {heir}")
        if heir in chain:
            raise ValueError(f"its configuration {heir} inherits from itself")
        chain.append(heir)
        heir = configurations[heir].get("inherits_from")
    resolved: dict[str, Any] = {}
    for heir in reversed(chain):
        resolved |= configurations[heir]
    resolved.pop("inherits_from", None)
    if "architecture" not in resolved:
        architecture = _architecture(resolved)
        resolved = {key: value for key, value in resolved.items() if key not in _OLD_KEYS}
        resolved["architecture"] = architecture
    return deepcopy(resolved)


def _architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a plan that names it in the old way."""
    name = configuration["UNet_class_name"]
    if name not in _OLD_UNETS:
        raise ValueError(f"its plan names an unknown network {name}")
    convs = configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return {
        "network_class_name": f"{PACKAGE}architectures.{_OLD_UNETS[name]}.{name}",
        **unet_arguments(
            [min(base * 2**stage, most) for stage in range(len(convs))],
            configuration["conv_kernel_sizes"],
            configuration["pool_op_kernel_sizes"],
            {"n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": convs},
            configuration["n_conv_per_stage_decoder"],
            dim=len(configuration["patch_size"]),
        ),
    }
