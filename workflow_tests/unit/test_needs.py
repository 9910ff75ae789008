"""What jobs ask for: from the sizes of volumes, and a training's from its recipe."""

import gzip
import re
from pathlib import Path

import pytest

from panorgan.config.settings import load_config, read_config_file
from panorgan.io.stamps import stamp, unpacked_bytes
from panorgan.run.needs import (
    LEAST_MINUTES,
    LONGEST_MINUTES,
    NEEDS,
    TRAININGS,
    Size,
    memory_mb,
    minutes,
    training_memory_mb,
    training_minutes,
)

REPOSITORY = Path(__file__).parents[2]
CT = Size((1000, 512, 512), (0.8, 0.8, 0.8))
SMALL = Size((30, 64, 64), (5.0, 4.0, 4.0))
COARSE = (2.5, 1.6, 1.6)


def rules():
    """Names of the rules that ask for memory."""
    text = "".join(path.read_text() for path in (REPOSITORY / "rules").glob("*.smk"))
    blocks = re.split(r"^ *(?=rule |use rule )", text, flags=re.M)[1:]
    named = (re.match(r"(?:use )?rule (\w+)(?: as (\w+))?", block) for block in blocks)
    return {match[2] or match[1] for match in named}


def test_every_rule_asks_for_memory_and_time():
    assert rules() == {*NEEDS, *TRAININGS}
    for path in (REPOSITORY / "rules").glob("*.smk"):
        text = path.read_text()
        assert text.count("mem_mb=run.memory,") == text.count("mem_mb") == text.count("resources:")
        assert text.count("runtime=run.runtime,") == text.count("runtime=")
        assert "retries:" not in text


@pytest.mark.parametrize("rule", NEEDS)
def test_the_largest_volume_decides_on_the_memory_and_their_number_on_the_time(rule):
    one, many, large = ([SMALL], [SMALL] * 9, [SMALL, CT])
    assert memory_mb(rule, [], COARSE) <= memory_mb(rule, one, COARSE)
    assert memory_mb(rule, one, COARSE) == memory_mb(rule, many, COARSE)
    assert memory_mb(rule, many, COARSE) <= memory_mb(rule, large, COARSE)
    assert minutes(rule, []) == LEAST_MINUTES
    assert minutes(rule, [CT] * 500) > minutes(rule, [CT] * 5) >= LEAST_MINUTES


def test_the_networks_grid_decides_where_images_are_brought_to_it():
    thick = Size((100, 512, 512), (5.0, 0.8, 0.8))
    coarse, fine = (memory_mb("preprocess_student", [thick], (mm, 0.8, 0.8)) for mm in (5.0, 1.0))
    # 16 bytes for each voxel of the grid, half as much again, in hundreds of MB.
    assert fine - coarse == pytest.approx(1.5 * 16 * 4 * thick.voxels / 1e6, abs=100)
    unknown = Size((thick.voxels,))
    assert memory_mb("preprocess_student", [unknown], (5.0, 0.8, 0.8)) == coarse


def recipe(**changes):
    config = read_config_file(REPOSITORY / "config/config.yaml")
    config["student"] |= changes
    return load_config(config).student


def test_a_trainings_needs_follow_from_its_recipe():
    usual = training_memory_mb(recipe())
    assert training_memory_mb(recipe(batch_size=4)) > usual
    assert training_memory_mb(recipe(patch_size=[32, 64, 96])) < usual
    training = read_config_file(REPOSITORY / "config/config.yaml")["student"]["training"]
    assert training_memory_mb(recipe(training=training | {"workers": 12})) > usual
    assert training_minutes(recipe()) == LONGEST_MINUTES
    short = recipe(training=training | {"epochs": 2, "iterations": 3})
    assert training_minutes(short) == LEAST_MINUTES + 1


@pytest.mark.parametrize("length", [0, 1, 70_000])
def test_a_files_length_is_told_by_its_end(tmp_path, length):
    plain, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    plain.write_bytes(bytes(length))
    packed.write_bytes(gzip.compress(bytes(length)))
    assert unpacked_bytes(stamp(str(plain))) == length
    if length:
        assert unpacked_bytes(stamp(str(packed))) == length
    assert unpacked_bytes(stamp(str(tmp_path / "none.nii.gz"))) == 0


def test_a_length_beyond_four_gibibytes_is_told_by_the_size_too(tmp_path):
    """gzip's end tells it modulo 2^32."""
    packed = tmp_path / "a.nii.gz"
    with open(packed, "wb") as file:
        file.truncate(2**32 + 2**31)
        file.seek(-4, 2)
        file.write((2**31 + 5).to_bytes(4, "little"))
    assert unpacked_bytes(stamp(str(packed))) == 2**32 + 2**31 + 5
