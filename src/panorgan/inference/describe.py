"""What a recipe or a trained model is, as plain values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panorgan.config.labels import load_labels
from panorgan.config.settings import Config, Recipe, load_config, merge, read_config_file

ON_A_PHANTOM = "trained on a phantom, not for clinical use"
ASSUMED = "bf16"
"""Precision of a recipe that leaves it to the hardware: what today's GPUs compute in."""

NO_INTENSITY = dict.fromkeys(
    ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 0.0
)


def describe_recipe(name: str, config_file: str | Path | None = None) -> dict[str, Any]:
    """A network and what its training takes, without data.

    Parameters
    ----------
    name
        teacher or student.
    config_file
        Laid over the defaults as Snakemake's --configfile is; None: the defaults.

    Raises
    ------
    Problems
        If the file cannot be read or has wrong keys or values.
    """
    from panorgan.nnunet.models.shapes import count_parameters, tensor_shapes
    from panorgan.nnunet.plans import configuration_of, make_dataset_json, make_plan

    changes = read_config_file(config_file) if config_file else {}
    config = load_config(merge(Config().model_dump(), changes))
    recipe: Recipe = getattr(config, name)
    # The default's path is that in a checkout; elsewhere the shipped table is the same.
    own = config.labels != Config().labels or Path(config.labels).exists()
    labels = load_labels(config.labels if own else None)
    classes = [labels.tumour.name] if name == "teacher" else labels.names
    plan = make_plan(recipe.model_dump(), classes, NO_INTENSITY, (1, 1, 1), (1, 1, 1))
    dataset_json = make_dataset_json(classes, ignore=True)
    architecture = configuration_of(plan)[1]["architecture"]
    shapes = tensor_shapes(architecture, 1, 1 + len(classes))
    return {"recipe": name, **_network_facts(plan, dataset_json, count_parameters(shapes))}


def describe_model(folder: str | Path) -> dict[str, Any]:
    """A trained model, of panorgan or of stock nnU-Net 2: its network and its card.

    Needs no torch; where it is installed, a training's memory is told too.

    Raises
    ------
    Problems
        If the folder is missing, damaged, or of another model than its card says.
    """
    from panorgan.nnunet.models.files import read_model
    from panorgan.nnunet.models.version2 import Unusable, has_regions
    from panorgan.nnunet.plans import configuration_of

    usable: dict[str, Any] = {"panorgan_predict": True}
    try:
        files = read_model(folder)
    except Unusable as error:
        files = error.files
        causes = [problem.cause for problem in error.problems]
        usable = {"panorgan_predict": False, "because": causes}
    labels = files.dataset_json["labels"]
    if not has_regions(files.dataset_json):
        labels = {str(labels[name]): name for name in sorted(labels, key=lambda name: labels[name])}
    card = {
        "labels": labels,
        **{key: value for key, value in files.card.items() if key not in _FROM_THE_PLAN},
    }
    notice = {"notice": ON_A_PHANTOM} if files.card.get("phantom") else {}
    return {
        "model": str(folder),
        **notice,
        **_network_facts(files.plan, files.dataset_json, files.card["parameters"]),
        "normalisation": configuration_of(files.plan)[1]["normalization_schemes"],
        "folds": list(files.folds),
        **usable,
        **({"notes": list(files.notes)} if files.notes else {}),
        "card": card,
    }


_FROM_THE_PLAN = ("network", "classes", "patch_size", "parameters")
"""What a card repeats."""


def as_json(value: Any, indent: str = "") -> str:
    """JSON with a line a key, so that lists of lists stay readable."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    deeper = indent + " "
    lines = (f"{deeper}{json.dumps(key)}: {as_json(part, deeper)}" for key, part in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _network_facts(
    plan: Mapping[str, Any], dataset_json: Mapping[str, Any], parameters: int
) -> dict[str, Any]:
    from panorgan.nnunet.cropping import crop_of
    from panorgan.nnunet.models.version2 import has_regions
    from panorgan.nnunet.plans import configuration_of, deep_supervision_sizes

    configuration = configuration_of(plan)[1]
    arguments = configuration["architecture"]["arch_kwargs"]
    facts = {
        "class": configuration["architecture"]["network_class_name"],
        "parameters": parameters,
        "inputs": len(dataset_json["channel_names"]),
        "outputs": len(plan["panorgan"]["classes"]) + (not has_regions(dataset_json)),
        "features": arguments.get("features", arguments.get("features_per_stage")),
        "kernel_sizes": arguments.get("kernel_sizes"),
        "strides": arguments.get("strides"),
        "axes": "zyx"[-len(configuration["patch_size"]) :],
        "crop": crop_of(plan),
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
    }
    recipe = plan["panorgan"].get("recipe")
    if recipe is None:  # a model that others trained
        return facts
    facts["deep_supervision_sizes"] = deep_supervision_sizes(plan)
    try:
        from panorgan.nnunet.training.memory import training_memory
    except ModuleNotFoundError:  # nothing is trained here
        return facts
    precision = recipe["training"]["precision"]
    precision = ASSUMED if precision == "auto" else precision
    memory = training_memory(plan, dataset_json, precision)
    parts = {**vars(memory), "allowance": memory.allowance, "needed": memory.needed}
    megabytes = {f"{name}_mb": round(count / 2**20) for name, count in parts.items()}
    return {**facts, "training_gpu_memory": {"precision": precision, **megabytes}}
