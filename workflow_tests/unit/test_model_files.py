"""Models read without torch: ours and any of stock nnU-Net 2, and no file runs or lies."""

import itertools
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_convert import LABELS, change_json, exported, foreign_plan, write_version_2
from test_networks import randomise
from test_preprocess import CLASSES, plan_for
from toys import Runs

from panorgan.cli import main
from panorgan.config.registry import NETWORKS
from panorgan.networks import build_network
from panorgan.nnunet.models.checkpoints import read_checkpoint
from panorgan.nnunet.models.configurations import resolve
from panorgan.nnunet.models.convert import convert
from panorgan.nnunet.models.files import read_model
from panorgan.nnunet.models.folders import checksum_of
from panorgan.nnunet.models.model import load_model, network_of, save_model, tensors_of
from panorgan.nnunet.models.pickles import load_pickle
from panorgan.nnunet.models.shapes import tensor_shapes
from panorgan.nnunet.models.stock import stock_network
from panorgan.nnunet.plans import configuration_of, make_dataset_json
from panorgan.problems import Problems

FINAL = "checkpoint_final.pth"


@pytest.fixture(autouse=True)
def _nnunets_folders(monkeypatch, tmp_path):
    """nnU-Net's trainer makes its output folder."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnunets"))


@pytest.fixture
def stock(tmp_path) -> Path:
    """A trained-model folder of nnU-Net 2 with the fold 0."""
    plan = foreign_plan("PlainConvUNet", "SimpleITKIO")
    return write_version_2(tmp_path / "theirs", plan, fold="0")


def small_student(folder: Path) -> Path:
    """A model folder of ours."""
    plan = plan_for((5.0, 1.5, 1.5), (8, 16, 16))
    configuration_of(plan)[1]["architecture"]["arch_kwargs"] = {
        "features": [4, 6, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "convs_per_stage": 2,
    }
    dataset_json = make_dataset_json(CLASSES, False)
    network = randomise(network_of(plan, dataset_json))
    save_model(folder, network, plan, dataset_json, {"seed": 3, "epochs": 7})
    return folder


def weights_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """All that torch reads of a checkpoint's network."""
    saved = torch.load(checkpoint, weights_only=False)["network_weights"]
    return {name: tensor.numpy() for name, tensor in saved.items()}


def assert_refused(call: Callable[[], object], message: str) -> None:
    """One clear line."""
    with pytest.raises(Problems, match=message) as caught:
        call()
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize(
    ("network", "reader", "dim", "orientation"),
    [
        ("PlainConvUNet", "SimpleITKIO", 3, "stored"),
        ("PlainConvUNet", "SimpleITKIOWithReorient", 2, "RAS"),
        ("ResidualEncoderUNet", "NibabelIOWithReorient", 3, "RAS"),
        ("ResidualUNet", "NibabelIO", 2, "stored"),
    ],
)
def test_a_stock_model_is_its_weights_its_plan_and_its_labels(
    tmp_path, network, reader, dim, orientation
):
    plan = foreign_plan(network, reader, dim)
    folder = write_version_2(tmp_path / "theirs", plan, LABELS | {"ignore": 4}, fold="0")
    model = read_model(folder)
    (tensors,) = model.tensors
    saved = weights_of(folder / "fold_0" / FINAL)
    # Stock has each tensor under two or three names; here it has the first.
    assert len(tensors) < len(saved)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, saved[name])
    name, configuration = configuration_of(model.plan)
    assert name == "other"
    assert configuration["batch_size"] == 5
    own = network_of(model.plan, model.dataset_json)
    assert tensors.keys() == tensors_of(own).keys()
    assert model.plan["panorgan"] == {
        "orientation": orientation,
        "classes": ["Liver", "Left kidney", "tumour"],
    }
    assert model.dataset_json["labels"]["ignore"] == 4
    assert model.folds == ("0",)
    convert(folder, tmp_path / "ours")
    converted = read_model(tmp_path / "ours")
    for key in model.card:
        assert converted.card[key] == model.card[key], key
    assert converted.plan == model.plan


def test_ours_is_what_was_saved(tmp_path):
    folder = small_student(tmp_path / "model")
    files, model = read_model(folder), load_model(folder)
    state = tensors_of(model.network)
    assert files.tensors[0].keys() == state.keys()
    for name, array in files.tensors[0].items():
        np.testing.assert_array_equal(array, state[name].numpy())
    assert files.card["checksum"] == checksum_of(files.tensors[0])
    assert (files.plan, files.dataset_json, files.card) == (
        model.plan,
        model.dataset_json,
        model.card,
    )
    assert_refused(lambda: read_model(folder, ["0"]), "one set of weights; leave the folds out")


def test_an_exported_model_of_ours_is_ours_again(tmp_path):
    student = small_student(tmp_path / "model")
    folder = exported(student, tmp_path / "results")
    again, ours = read_model(folder), read_model(student)
    assert again.card == ours.card
    assert again.plan == ours.plan
    assert checksum_of(again.tensors[0]) == ours.card["checksum"]


def test_folds_are_all_finished_ones_or_the_named(tmp_path, stock):
    plan = foreign_plan("PlainConvUNet", "SimpleITKIO")
    for fold in ("2", "10", "all"):
        write_version_2(stock, plan, fold=fold)
    (stock / "fold_3").mkdir()
    (stock / "fold_3" / "checkpoint_best.pth").write_bytes(b"not finished")
    model = read_model(stock)
    assert model.folds == ("0", "2", "10")  # as stock's predictor averages them
    for fold, tensors in zip(model.folds, model.tensors, strict=True):
        saved = weights_of(stock / f"fold_{fold}" / FINAL)
        np.testing.assert_array_equal(
            tensors["decoder.seg_layers.0.weight"], saved["decoder.seg_layers.0.weight"]
        )
    named = read_model(stock, ["fold_2", "0"])
    assert named.folds == ("2", "0")
    assert read_model(stock, ["all"]).folds == ("all",)
    assert read_model(stock / "fold_10").folds == ("10",)
    assert len({part.card["checksum"] for part in (model, named, read_model(stock, ["2"]))}) == 3
    assert model.card["converted_from"]["folds"] == ["0", "2", "10"]
    assert_refused(lambda: read_model(stock, ["3"]), "no fold 3; say --fold 0 or 2 or 10 or all")
    assert_refused(lambda: load_model(stock), "several folds: 0, 2, 10; name the folder of one")
    for fold in ("0", "2", "10"):
        (stock / f"fold_{fold}" / FINAL).unlink()
    assert read_model(stock).folds == ("all",)
    (stock / "fold_all" / FINAL).unlink()
    assert_refused(lambda: read_model(stock), f"no fold of it has a {FINAL}; finish its training")


def test_the_folder_above_serves_if_it_holds_one_model(tmp_path, stock):
    above = tmp_path / "results" / "Dataset042_CT"
    above.mkdir(parents=True)
    stock.rename(above / "a")
    assert read_model(above.parent).folds == ("0",)
    write_version_2(above / "b", foreign_plan("PlainConvUNet", "SimpleITKIO"))
    assert_refused(lambda: read_model(above), "holds several models: a, b; name one of them")


def test_what_is_no_model_is_a_line(tmp_path):
    assert_refused(lambda: read_model(tmp_path / "none"), "no such model folder")
    small_student(tmp_path / "run" / "model")
    for place in ("run", "."):  # one of ours is named itself
        message = rf"is no model folder; is it {tmp_path}/run/model\?"
        assert_refused(lambda place=place: read_model(tmp_path / place), message)
    (tmp_path / "run" / "plans.json").write_text("{}")  # a run's lie beside its models
    assert_refused(lambda: read_model(tmp_path / "run"), r"is it .*/run/model\?")
    (tmp_path / "empty").mkdir()
    assert_refused(lambda: read_model(tmp_path / "empty"), "holds no model of panorgan, nnU-Net 2")
    old = tmp_path / "old"
    old.mkdir()
    (old / "plans.pkl").write_bytes(b"")
    assert_refused(
        lambda: read_model(old), rf"is a model of nnU-Net 1; `panorgan convert {old} -o NEW` first"
    )


def test_folds_are_of_one_configuration_and_one_network(tmp_path, stock):
    write_version_2(stock, foreign_plan("PlainConvUNet", "SimpleITKIO"), fold="1")
    path = stock / "fold_1" / FINAL
    saved = torch.load(path, weights_only=False)
    torch.save(saved | {"init_args": {"configuration": "3d_fullres"}}, path)
    assert_refused(lambda: read_model(stock), "fold_1/.*of the configuration 3d_fullres, other")
    del saved["network_weights"]["decoder.seg_layers.0.bias"]
    torch.save(saved, path)
    assert_refused(lambda: read_model(stock), r"decoder\.seg_layers\.0\.bias is missing")


def test_weights_that_are_no_numbers_are_refused(stock):
    path = stock / "fold_0" / FINAL
    saved = torch.load(path, weights_only=False)
    saved["network_weights"]["decoder.seg_layers.0.bias"][0] = torch.nan
    torch.save(saved, path)
    assert_refused(lambda: read_model(stock), "its weights are not all numbers")


def test_a_trainer_of_ones_own_is_a_note(stock):
    path = stock / "fold_0" / FINAL
    saved = torch.load(path, weights_only=False)
    torch.save(saved | {"trainer_name": "MyTrainer"}, path)
    assert read_model(stock).notes == (
        "trained by MyTrainer: right only if that builds the network of its plan",
    )


REFUSED = {
    "regions": ("dataset", lambda d: d["labels"].update(tumour=[2, 3]), "labels are regions"),
    "two channels": (
        "dataset",
        lambda d: d["channel_names"].update({"1": "PET"}),
        "takes 2 images",
    ),
    "a cascade": (
        "plans",
        lambda p: p["configurations"]["other"].update(previous_stage="3d_lowres"),
        "is the second stage of a cascade",
    ),
    "unknown normalisation": (
        "plans",
        lambda p: p["configurations"]["other"].update(normalization_schemes=["Mine"]),
        "normalises by Mine, which is unknown here",
    ),
    "another network": (
        "plans",
        lambda p: p["configurations"]["3d_fullres"]["architecture"].update(
            network_class_name="my.Net"
        ),
        "the network class my.Net is unknown; known: PlainConvUNet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_panorgan_cannot_run_is_refused_by_name_and_still_described(stock, capsys, case):
    file, change, message = REFUSED[case]
    change_json(stock / f"{file}.json", change)
    assert_refused(lambda: read_model(stock), f"{message}.*; panorgan cannot use it")
    assert main(["describe", str(stock)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["panorgan_predict"] is False
    assert [reason for reason in facts["because"] if message in reason]
    assert facts["patch_size"] == [8, 16, 16]
    assert facts["parameters"] > 1000


def test_all_that_stands_against_a_model_is_said_at_once(stock):
    for file, change, _ in (REFUSED["regions"], REFUSED["a cascade"]):
        change_json(stock / f"{file}.json", change)
    with pytest.raises(Problems) as caught:
        read_model(stock)
    assert len(caught.value.problems) == 2


def test_the_first_stage_of_a_cascade_is_a_model_by_itself(stock):
    change_json(
        stock / "plans.json",
        lambda p: p["configurations"]["other"].update(next_stage="3d_cascade_fullres"),
    )
    assert read_model(stock).folds == ("0",)


# ---------------------------------------------------------------------------------------------
# Plans and networks as nnU-Net has them


def old_plan(network: str, dim: int) -> dict:
    """A plan from before networks were named by their class."""
    plan = foreign_plan(network, "SimpleITKIO", dim)
    name = next(iter(plan["configurations"]))
    configuration = plan["configurations"][name]
    del configuration["architecture"]
    configuration |= {
        "UNet_class_name": network,
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_kernel_sizes": [[1] + [3] * (dim - 1), *[[3] * dim] * 2],
        "pool_op_kernel_sizes": [[1] * dim, *[[2] * dim] * 2],
        "num_pool_per_axis": [2] * dim,
    }
    return plan


@pytest.mark.parametrize(
    "plan",
    [
        foreign_plan("PlainConvUNet", "SimpleITKIO"),
        *(
            old_plan(network, dim)
            for network in ("PlainConvUNet", "ResidualEncoderUNet")
            for dim in (2, 3)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans format")
def test_configurations_are_what_nnunets_plans_manager_makes_of_them(plan):
    plan["configurations"]["third"] = {"inherits_from": "other", "batch_size": 7, "spacing": [1]}
    for name in plan["configurations"]:
        before = json.dumps(plan)
        expected = PlansManager(json.loads(before)).get_configuration(name).configuration
        expected.pop("inherits_from", None)
        assert resolve(plan, name) == expected
        assert json.dumps(plan) == before


def test_plans_that_cannot_be_resolved_are_said(stock):
    change_json(
        stock / "plans.json",
        lambda p: p["configurations"]["3d_fullres"].update(inherits_from="other"),
    )
    assert_refused(lambda: read_model(stock), "damaged.*configuration other inherits from itself")
    change_json(stock / "plans.json", lambda p: p["configurations"].pop("other"))
    assert_refused(lambda: read_model(stock), "damaged.*its plan has no configuration other")
    unknown = old_plan("MyUNet", 3)
    (stock / "plans.json").write_text(json.dumps(unknown))
    assert_refused(lambda: read_model(stock), "its plan names an unknown network MyUNet")


def test_an_old_plan_is_a_model_too(stock):
    plan = old_plan("PlainConvUNet", 3)
    configuration = plan["configurations"]["3d_fullres"]
    configuration |= {"n_conv_per_stage_encoder": [2] * 3, "n_conv_per_stage_decoder": [1] * 2}
    configuration["conv_kernel_sizes"][0] = [3, 3, 3]
    intensities = plan.pop("foreground_intensity_properties_per_channel")
    plan["foreground_intensity_properties_by_modality"] = intensities
    new = read_model(stock)
    (stock / "plans.json").write_text(json.dumps(plan))
    old = read_model(stock)
    assert old.plan["foreground_intensity_properties_per_channel"] == intensities
    assert old.card == new.card


def stock_architectures():
    """Plans' networks in all forms, some with one value for all stages."""
    for name, dim, norm, bias, block in itertools.product(
        ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"),
        (2, 3),
        ("InstanceNorm", "BatchNorm", None),
        (True, False),
        (None, "BasicBlockD", "BottleneckD"),
    ):
        plain = name == "PlainConvUNet"
        if plain and block:
            continue
        arguments = {
            "n_stages": 4,
            "features_per_stage": [4, 8, 8, 12],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": [[1] + [3] * (dim - 1), 3, 3, [3] * dim],
            "strides": [[1] * dim, [1] + [2] * (dim - 1), 1, 2],
            "n_conv_per_stage" if plain else "n_blocks_per_stage": [2, 1, 3, 2] if bias else 2,
            "n_conv_per_stage_decoder": [1, 2, 1],
            "conv_bias": bias,
            "norm_op": norm and f"torch.nn.{norm}{dim}d",
            "norm_op_kwargs": {"affine": True} if bias else None,
            "dropout_op": f"torch.nn.Dropout{dim}d" if bias else None,
            "dropout_op_kwargs": {"p": 0.1},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": None,
        }
        names = ["conv_op", "norm_op", "nonlin", "dropout_op"]
        if block:
            module = "dynamic_network_architectures.building_blocks.residual"
            arguments |= {"block": f"{module}.{block}", "bottleneck_channels": 3}
            arguments["stem_channels"] = 5
            names.append("block")
        yield {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": arguments,
            "_kw_requires_import": names,
        }


def test_the_tensors_of_nnunets_networks_are_known_without_building_them():
    for architecture in stock_architectures():
        with torch.device("meta"):
            network = stock_network(architecture, 2, 3)
        expected = {name: tuple(tensor.shape) for name, tensor in tensors_of(network).items()}
        assert tensor_shapes(architecture, 2, 3) == expected


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dim", [2, 3])
def test_the_tensors_of_our_networks_are_known_without_building_them(name, dim):
    arguments = {
        "features": [4, 6, 8, 8, 10, 10, 12, 12],
        "kernel_sizes": [[1] * (dim - 2) + [3, 3], *[[3] * dim] * 7],
        "strides": [[1] * dim, *[[2] * dim] * 7],
        "convs_per_stage": 2,
    }
    with torch.device("meta"):
        network = build_network(name, 2, 3, **arguments)
    expected = {key: tuple(tensor.shape) for key, tensor in tensors_of(network).items()}
    architecture = {"network_class_name": NETWORKS[name].path, "arch_kwargs": arguments}
    assert tensor_shapes(architecture, 2, 3) == expected


# ---------------------------------------------------------------------------------------------
# Checkpoints: what torch wrote is read, and nothing is believed


def written(path: Path, weights: object, **other) -> Path:
    torch.save({"w": weights, **other}, path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], **how) -> None:
    """Change the entries of an archive, each named without the archive's own name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    inside = {name.partition("/")[2]: data for name, data in entries.items()}
    change(inside)
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in inside.items():
            archive.writestr(f"{root}/{name}", data)


TYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)


@pytest.mark.parametrize("order", ["little", "big"])
def test_tensors_of_all_types_and_layouts_are_read(tmp_path, order):
    base = torch.arange(24.0).reshape(2, 3, 4) - 5
    tensors = {str(dtype): base.to(dtype) for dtype in TYPES}
    tensors |= {
        "a number": torch.tensor(3),
        "nothing": torch.zeros(0, 3),
        "a part": base[1, 1:, ::2],
        "turned": base.permute(2, 0, 1),
        "repeated": torch.ones(1).expand(1, 1),
        "a parameter": torch.nn.Parameter(base),
    }
    path = written(tmp_path / "a.pth", OrderedDict(tensors))
    if order == "big":  # as torch writes on such a machine

        def turn(entries):
            entries["byteorder"] = b"big"
            for key, tensor in enumerate(tensors.values()):
                size = tensor.element_size()
                if (name := f"data/{key}") in entries:
                    data = np.frombuffer(entries[name], f"V{size}")
                    turned = data.view(np.uint8).reshape(-1, size)[:, ::-1]
                    entries[name] = turned.tobytes()

        del tensors["a part"], tensors["turned"], tensors["a parameter"]  # these share a storage
        path = written(tmp_path / "a.pth", OrderedDict(tensors))
        rewrite(path, turn)
    read = read_checkpoint(path, "w")["w"]
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach()
        expected = expected.float() if expected.dtype == torch.bfloat16 else expected
        array = read[name]
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.dtype.isnative
        assert array.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(array, expected.numpy())


def test_names_of_one_tensor_share_one_array(tmp_path):
    tensor = torch.arange(3.0)
    read = read_checkpoint(written(tmp_path / "a.pth", {"a": tensor, "b": tensor}), "w")["w"]
    assert read["a"] is read["b"]


def test_only_what_is_wanted_is_read(tmp_path):
    """The optimiser's storages may be broken, the wanted ones may not."""
    path = written(tmp_path / "a.pth", {"a": torch.zeros(40)}, optimizer={0: torch.ones(40)})
    content = path.read_bytes()
    ones = torch.ones(40).numpy().tobytes()
    path.write_bytes(content.replace(ones, b"\1" * len(ones)))
    assert read_checkpoint(path, "w")["w"]["a"].shape == (40,)
    path.write_bytes(content.replace(bytes(160), b"\1" * 160))
    assert_refused(lambda: read_checkpoint(path, "w"), r"cannot be read \(BadZipFile: Bad CRC-32")


class Tensor:
    """A pickle of a tensor that says something else than is so."""

    def __init__(self, count=4, offset=0, size=(4,), stride=(1,)):
        self.parts = torch.zeros(count)._typed_storage(), offset, size, stride

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.parts, False, OrderedDict())


OUTSIDE = "a tensor reaches beyond its storage"
LIES = {
    "more values than there are": (Tensor(size=(5,)), OUTSIDE),
    "strides that reach out": (Tensor(size=(2, 2), stride=(3, 1)), OUTSIDE),
    "a place that reaches out": (Tensor(offset=1), OUTSIDE),
    "a place before the first": (Tensor(offset=-1, size=(1,)), "a tensor has no size"),
    "steps back": (Tensor(offset=3, stride=(-1,)), "a tensor has no size"),
    "one value many times": (Tensor(count=1, size=(10**12,), stride=(0,)), OUTSIDE),
    "more axes than steps": (Tensor(size=(2, 2)), "a tensor has no size"),
    "sizes that are no numbers": (Tensor(size=(1.5,)), "a tensor has no size"),
    "no tensor": ("text", "not all of its weights are tensors"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_tensor_that_lies_is_refused(tmp_path, case):
    tensor, message = LIES[case]
    path = written(tmp_path / "a.pth", {"a": tensor})
    assert_refused(lambda: read_checkpoint(path, "w"), message)


def test_tensors_hold_no_more_than_their_file(tmp_path):
    """A thousand views of one storage would be a thousand copies."""
    tensor = torch.zeros(100, 100)
    views = {str(i): tensor[:, i:] for i in range(1, 100)}
    path = written(tmp_path / "a.pth", views)
    assert_refused(lambda: read_checkpoint(path, "w"), "its tensors hold more than the file")


ARCHIVES = {
    "a shorter storage": (lambda e: e.update({"data/0": e["data/0"][:-4]}), {}, "has not the size"),
    "a longer storage": (lambda e: e.update({"data/0": e["data/0"] * 2}), {}, "has not the size"),
    "no storage": (lambda e: e.pop("data/0"), {}, "cannot be read"),
    "no pickle": (lambda e: e.pop("data.pkl"), {}, "the archive is not torch's"),
    "an unknown byte order": (lambda e: e.update(byteorder=b"middle"), {}, "cannot be read"),
    "half a pickle": (lambda e: e.update({"data.pkl": e["data.pkl"][:20]}), {}, "cannot be read"),
    "compressed": (lambda e: None, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_not_torchs_is_refused(tmp_path, case):
    change, how, message = ARCHIVES[case]
    path = written(tmp_path / "a.pth", {"a": torch.zeros(4)})
    rewrite(path, change, **how)
    assert_refused(lambda: read_checkpoint(path, "w"), message)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_is_there_once(tmp_path):
    path = written(tmp_path / "a.pth", {"a": torch.zeros(4)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", bytes(16))
    assert_refused(lambda: read_checkpoint(path, "w"), "the archive is not torch's")


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (Runs(os.system, "touch trace"), "system"),
        (Runs(eval, "1"), "eval"),
        (Runs(torch.load, "x"), "torch.serialization.load"),
        (Path("x"), "Path"),
        (torch.nn.Linear(1, 1), "Linear"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, bad, name
):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.pth", {"a": torch.zeros(1)}, optimizer=bad)
    assert_refused(lambda: read_checkpoint(path, "w"), f"asks for .*{name}.*, which no model needs")
    assert not Path("trace").exists()


class Believed:
    """A pickle that says of NumPy's own type of floats that they are pointers."""

    def __reduce__(self):
        return np.dtype, ("f8", False, False), (3, "<", None, None, None, -1, -1, 63)


def test_a_pickle_changes_nothing_of_numpy(tmp_path):
    path = written(tmp_path / "a.pth", {"a": torch.zeros(1)}, other=Believed())
    read_checkpoint(path, "w")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Believed()))
    load_pickle(tmp_path / "a.pkl")
    assert np.dtype("f8").flags == np.dtype("f4").flags == 0


def test_a_pickle_takes_no_more_memory_than_it_has_bytes(tmp_path):
    """Places of objects and lengths are only numbers in it, and one byte costs nothing."""
    far, long = (2**32 - 1).to_bytes(4, "little"), (2**40).to_bytes(8, "little")
    for content in (
        pickle.PROTO + b"\2" + pickle.NONE + pickle.LONG_BINPUT + far + pickle.STOP,
        pickle.PROTO + b"\5" + pickle.BYTEARRAY8 + long + b"x",
        pickle.dumps(Runs(bytearray, 2**40)),
        pickle.dumps(Runs(np.ndarray, (2**40,))),
    ):
        path = written(tmp_path / "a.pth", {"a": torch.zeros(1)})
        rewrite(path, lambda entries, content=content: entries.update({"data.pkl": content}))
        tracemalloc.start()
        assert_refused(lambda path=path: read_checkpoint(path, "w"), "cannot be read")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22


def test_damaged_checkpoints_are_a_line(tmp_path):
    path = written(tmp_path / "a.pth", {"a": torch.zeros(4)})
    whole = path.read_bytes()
    for content in (b"", b"not what it was", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert_refused(lambda: read_checkpoint(path, "w"), r"a\.pth: cannot be read")
    torch.save({"w": {}}, path, _use_new_zipfile_serialization=False)
    assert_refused(lambda: read_checkpoint(path, "w"), "no whole zip archive, as which torch has")
    path.write_bytes(whole)
    assert_refused(lambda: read_checkpoint(path, "weights"), "cannot be read")
    path.unlink()
    assert_refused(lambda: read_checkpoint(path, "w"), "No such file")


# ---------------------------------------------------------------------------------------------
# Without torch and nnU-Net

WITHOUT = """
import sys
for name in ("torch", "nnunetv2", "dynamic_network_architectures", "blosc2", "skimage"):
    sys.modules[name] = None
from panorgan.cli import main
from panorgan.nnunet.models.files import read_model
for folder in sys.argv[1:]:
    model = read_model(folder)
    print(model.card["checksum"], len(model.tensors), sep="\\n")
    assert main(["describe", folder]) == 0
    print("---")
"""


def test_nothing_needs_torch_or_nnunet(tmp_path, stock):
    ours = small_student(tmp_path / "ours")
    write_version_2(stock, foreign_plan("PlainConvUNet", "SimpleITKIO"), fold="1")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ours, stock], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, _ = done.stdout.split("---\n")
    for told, folder, folds in ((first, ours, 1), (second, stock, 2)):
        checksum, count, facts = told.split("\n", 2)
        assert checksum == read_model(folder).card["checksum"]
        assert int(count) == folds
        facts = json.loads(facts)
        assert facts["parameters"] == read_model(folder).card["parameters"]
        assert "training_gpu_memory" not in facts
        assert facts["panorgan_predict"] is True


def test_describe_tells_what_a_stock_model_is(stock, capsys):
    assert main(["describe", str(stock)]) == 0
    facts = json.loads(capsys.readouterr().out)
    card = facts.pop("card")
    network = load_model(stock).network
    assert facts == {
        "model": str(stock),
        "class": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "inputs": 1,
        "outputs": 4,
        "features": [4, 8, 8],
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "axes": "zyx",
        "spacing_mm": [2.5, 2.0, 2.0],
        "patch_size": [8, 16, 16],
        "batch_size": 5,
        "crop": "nonzero",
        "normalisation": ["CTNormalization"],
        "folds": ["0"],
        "panorgan_predict": True,
    }
    assert card["labels"] == {"0": "background", "1": "Liver", "2": "Left kidney", "3": "tumour"}
    assert card["orientation"] == "stored"
    assert card["converted_from"]["trainer"] == "nnUNetTrainer"
