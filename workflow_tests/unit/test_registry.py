"""What is chosen by name: texts are complete, and each name is known wherever it is used."""

import re
import subprocess
import sys
from dataclasses import astuple, fields, replace
from pkgutil import resolve_name

import pytest

from panorgan.config.registry import (
    ARMS,
    CROPS,
    FUSED,
    NETWORKS,
    ORDERS,
    ORIGINS,
    PROFILES,
    REFERENCE,
    VARIANTS,
    pattern,
)
from panorgan.networks import UNet
from panorgan.networks.unet import PlainStage
from panorgan.report.methods_text import REFERENCES

KINDS = (ARMS, ORDERS, PROFILES, NETWORKS, CROPS)
CHOICES = [choice for kind in KINDS for choice in kind.values()]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_nothing_is_made_without_its_texts(choice):
    for field in fields(choice):
        if isinstance(getattr(choice, field.name), str):
            with pytest.raises(ValueError, match=f"has no {field.name}"):
                replace(choice, **{field.name: ""})
    cited = re.findall(r"\[@(\w+)\]", " ".join(map(str, astuple(choice))))
    assert {*cited} <= {*REFERENCES}


def test_networks_are_importable_and_have_known_stages():
    for network in NETWORKS.values():
        cls = resolve_name(network.path)
        assert issubclass(cls, UNet)
        shape = {"dim": 2, "below_channels": 8, "skip_channels": 8, "convs": 2}
        stages = [
            cls.decoder_stage(index, 7, **shape, stride=(2, 2), kernel=(3, 3)) for index in range(7)
        ]
        plain = [isinstance(stage, PlainStage) for stage in stages]
        assert plain == [kind == "plain" for kind in network.decoder_kinds(7)]
        with pytest.raises(ValueError, match="no decoder stage is called odd"):
            replace(network, decoder=("plain", "odd"))


def test_each_network_has_a_class_of_its_own():
    assert len({network.path for network in NETWORKS.values()}) == len(NETWORKS)


def test_an_order_names_each_input_once_and_pseudo_organs_last():
    order = ORDERS[REFERENCE]
    for priority in (order.priority[::-1], order.priority[:2], order.priority[1:]):
        with pytest.raises(ValueError, match="organ pseudo-labels must come last of three"):
            replace(order, priority=priority)


def test_variants_learn_labels_that_are_made():
    assert {*FUSED} <= {*VARIANTS}
    assert [name for name, arm in ARMS.items() if arm.instead is None] == ["stage2"]


def test_patterns_match_names_and_nothing_else():
    for names in (FUSED, VARIANTS, ORIGINS):
        assert all(re.fullmatch(pattern(names), name) for name in names)
        assert not re.fullmatch(pattern(names), "stage3")


def test_nothing_heavy_is_imported():
    code = (
        "import sys, panorgan.config.registry; "
        "print(*({'torch', 'numpy', 'scipy', 'pandas'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
