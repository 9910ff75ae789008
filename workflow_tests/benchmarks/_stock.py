"""Stock nnU-Net 2 beside panorgan: models that it trained, and its predictor."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import panorgan.nnunet  # stands in for what nnU-Net imports and nobody needs  # noqa: F401

# isort: split
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from panorgan.nnunet.models.folders import WEIGHTS
from panorgan.nnunet.models.model import load_model
from panorgan.nnunet.plans import configuration_of

TRAINER = "nnUNetTrainer"

MARGINS = (0.1, 0.01, 0.001)
"""Below which two highest logits are told to lie near each other."""
PLACE = 32
"""What a label map's values are below where margins stand in it too."""


def write_stock_model(
    folder: Path,
    plan: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    folds: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """A trained-model folder as nnU-Net's trainer leaves it, with the weights of each fold."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for fold, weights in folds.items():
        checkpoint = {
            "network_weights": weights,
            "optimizer_state": None,
            "grad_scaler_state": None,
            "logging": {},
            "_best_ema": None,
            "current_epoch": 1,
            "init_args": {
                "plans": plan,
                "configuration": configuration_of(plan)[0],
                "fold": fold,
                "dataset_json": dataset_json,
            },
            "trainer_name": TRAINER,
            "inference_allowed_mirroring_axes": None,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")


def stock_predictor(
    folder: Path, device: str = "cpu", tile_step: float = 0.5
) -> predict_from_raw_data.nnUNetPredictor:
    """nnU-Net's predictor without mirroring, of a folder of its own or of ours.

    Of ours it gets our network: it has no equal of the teacher's.
    """
    predictor = predict_from_raw_data.nnUNetPredictor(
        tile_step_size=tile_step,
        use_mirroring=False,
        device=torch.device(device),
        verbose=False,
        allow_tqdm=False,
    )
    if not (folder / WEIGHTS).exists():
        folds = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*"))
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        return predictor
    model = load_model(folder)
    manager = PlansManager(model.plan)
    predictor.manual_initialization(
        model.network,
        manager,
        manager.get_configuration(configuration_of(model.plan)[0]),
        [model.network.state_dict()],
        model.dataset_json,
        TRAINER,
        None,
    )
    return predictor


@contextmanager
def sums_in_fp32() -> Iterator[None]:
    """Within it nnU-Net adds up tiles in float32 and not, as it does, in float16."""
    weights = lru_cache(maxsize=2)(
        partial(predict_from_raw_data.compute_gaussian, dtype=torch.float32)
    )
    with (
        patch.object(torch, "half", torch.float32),
        patch.object(predict_from_raw_data, "compute_gaussian", weights),
    ):
        yield


@contextmanager
def margins_in_labels() -> Iterator[None]:
    """Within it nnU-Net's label maps tell how close a voxel's two highest logits are.

    To a label `PLACE` is added for each of `MARGINS` that they differ by less than.
    """
    original = LabelManager.convert_logits_to_segmentation

    def convert(self: LabelManager, logits: Any) -> Any:
        labels = original(self, logits)
        best, second = torch.as_tensor(logits).topk(2, 0).values
        for margin in MARGINS:
            labels = labels + PLACE * np.asarray(best - second < margin).astype(np.uint8)
        return labels

    with patch.object(LabelManager, "convert_logits_to_segmentation", convert):
        yield


def label_by_stock(
    predictor: predict_from_raw_data.nnUNetPredictor, images: Sequence[Path], out: Path
) -> list[Path]:
    """Label maps by nnU-Net in this process, as ``nnUNetv2_predict -npp 0 -nps 0`` makes them."""
    names = [out / image.name.removesuffix(".nii.gz").removesuffix("_0000") for image in images]
    out.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(
        [[str(image)] for image in images], [str(name) for name in names]
    )
    return [name.with_name(f"{name.name}.nii.gz") for name in names]
