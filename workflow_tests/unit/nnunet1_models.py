"""Writes models of nnU-Net 1 with its own planner, trainer and checkpoints, where it is installed.

``python nnunet1_models.py FOLDER`` makes FOLDER/NAME for each model: ``model/`` as nnU-Net 1 leaves
it after a training, ``outputs.pt`` with an input and all outputs of its network, and of two CTs
what it makes of them: ``plain.npz`` of ``plain_0000.nii.gz``, which needs no resampling, and
``resampled.npz``.
"""

import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunet.experiment_planning.experiment_planner_baseline_2DUNet_v21 import (
    ExperimentPlanner2D_v21,
)
from nnunet.experiment_planning.experiment_planner_baseline_3DUNet_v21 import (
    ExperimentPlanner3D_v21,
)
from nnunet.training.network_training.nnUNetTrainerV2 import nnUNetTrainerV2


class ShallowTrainer(nnUNetTrainerV2):
    """Builds fewer stages and features than its plan has, as the trainer of FLARE22's winner."""

    def initialize_network(self):
        self.net_conv_kernel_sizes = self.net_conv_kernel_sizes[:5]
        self.net_num_pool_op_kernel_sizes = self.net_num_pool_op_kernel_sizes[:4]
        self.base_num_features = 2
        super().initialize_network()


MODELS = {
    # planner, sizes and spacings of the "training cases" (z, y, x), classes, base features
    "2d": (ExperimentPlanner2D_v21, (20, 256, 230), (3.0, 0.8, 0.8), 13, 2),
    "3d isotropic": (ExperimentPlanner3D_v21, (40, 44, 36), (1.5, 1.5, 1.5), 14, 4),
    # Coronal slices: nnU-Net puts the axis of the largest spacing first.
    "3d anisotropic": (ExperimentPlanner3D_v21, (96, 20, 64), (1.0, 4.0, 1.2), 3, 4),
    "3d of two resolutions": (ExperimentPlanner3D_v21, (500, 450, 450), (1.0, 1.0, 1.0), 3, 32),
}


def make_plans(folder: Path, planner, size, spacing, classes: int, features: int) -> Path:
    """nnU-Net 1's plan for cases of a size and spacing, with fewer features."""
    cropped = folder / "cropped"
    cropped.mkdir(parents=True)
    rng = np.random.default_rng(0)
    intensity = {
        "median": np.float32(90.5),
        "mean": np.float32(79.4) + rng.normal(),
        "sd": np.float64(142.3),
        "mn": np.float32(-1024.0),
        "mx": np.float32(2000.0),
        "percentile_99_5": np.float64(294.1),
        "percentile_00_5": np.float64(-972.3),
        "local_props": {"a": {"mean": np.float32(60.0)}},
    }
    properties = {
        "all_sizes": [size] * 3,
        "all_spacings": [np.array(spacing)] * 3,
        "segmentation_props_per_patient": None,
        "class_dct": {value: f"c{value}" for value in range(classes + 1)},
        "all_classes": sorted(range(1, classes + 1), key=str),  # 1, 10, 11, …
        "modalities": {0: "CT"},
        "intensityproperties": {0: intensity},
        "size_reductions": {"a": np.float64(0.9)},
    }
    (cropped / "dataset_properties.pkl").write_bytes(pickle.dumps(properties))
    plan = planner(str(cropped), str(folder))
    plan.unet_base_num_features = features
    plan.plan_experiment()
    return Path(plan.plans_fname)


def make_model(folder: Path, name: str, planner, *facts) -> None:
    two_dimensional = planner is ExperimentPlanner2D_v21
    plans = make_plans(folder, planner, *facts)
    model = folder / "model"
    stages = pickle.loads(plans.read_bytes())["plans_per_stage"]
    shallow = name == "3d of two resolutions"
    trainer = (ShallowTrainer if shallow else nnUNetTrainerV2)(
        str(plans), "all", str(model), str(folder), True, max(stages), fp16=True
    )
    trainer.initialize(False)
    network = trainer.network
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (2 / fan_in) ** 0.5)
    size = [
        min(size, 2 * int(step))
        for size, step in zip(
            trainer.patch_size, network.input_shape_must_be_divisible_by, strict=True
        )
    ]
    x = torch.randn(2, 1, *size, generator=generator)
    sum(output.mean() for output in network(x)).backward()
    trainer.optimizer.step()  # fills the momentum that a checkpoint holds
    trainer._maybe_init_amp()
    trainer.epoch = 2
    trainer.all_tr_losses = [np.float64(0.5), np.mean([0.1, 0.2], dtype=np.float32)]
    trainer.all_val_losses, trainer.all_val_eval_metrics = [np.float32(0.1)], [np.float64(0.3)]
    trainer.best_MA_tr_loss_for_patience = np.float64(0.2)
    trainer.save_checkpoint(str(model / "all" / "model_final_checkpoint.model"))
    shutil.copy(plans, model / "plans.pkl")
    network.eval()
    with torch.no_grad():
        torch.save({"input": x, "outputs": list(network(x))}, folder / "outputs.pt")
    if not shallow:
        make_cases(folder, trainer, two_dimensional, facts[1])


def make_cases(folder: Path, trainer, two_dimensional: bool, spacing) -> None:
    """Preprocess and segment CTs that are stored upside down."""
    trainer.network.do_ds = False
    rng = np.random.default_rng(3)
    shape = (2, 200, 300) if two_dimensional else (50, 30, 70)
    voxels = rng.integers(-1200, 1200, shape).astype(np.int16)
    voxels[:, :4] = 0  # cropped off
    voxels[:, 4:][voxels[:, 4:] == 0] = 1
    for name, scale in {"plain": 1.0, "resampled": 0.8}.items():
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing([mm * scale for mm in spacing[::-1]])
        image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
        path = folder / f"{name}_0000.nii.gz"
        sitk.WriteImage(image, str(path))
        data, _, _ = trainer.preprocess_patient([str(path)])
        labels, _ = trainer.predict_preprocessed_data_return_seg_and_softmax(
            data, do_mirroring=False, mirror_axes=(), mixed_precision=False, verbose=False
        )
        np.savez(folder / f"{name}.npz", data=data, labels=labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, facts in MODELS.items():
        make_model(Path(sys.argv[1]) / name, name, *facts)
