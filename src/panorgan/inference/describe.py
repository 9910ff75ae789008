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
    from panorgan.nnunet.plans import make_dataset_json, make_plan

    changes = read_config_file(config_file) if config_file else {}
    config = load_config(merge(Config().model_dump(), changes))
    recipe: Recipe = getattr(config, name)
    # The default's path is that in a checkout; elsewhere the shipped table is the same.
    own = config.labels != Config().labels or Path(config.labels).exists()
    labels = load_labels(config.labels if own else None)
    classes = [labels.tumour.name] if name == "teacher" else labels.names
    plan = make_plan(recipe.model_dump(), classes, NO_INTENSITY, (1, 1, 1), (1, 1, 1))
    return {"recipe": name, **_network_facts(plan, make_dataset_json(classes, ignore=True))}


def describe_model(folder: str | Path) -> dict[str, Any]:
    """A trained model: its network and its card.

    Raises
    ------
    Problems
        If the folder is missing, damaged, or of another model than its card says.
    """
    from panorgan.nnunet.models.model import load_model

    model = load_model(folder)
    labels = {value: name for name, value in model.dataset_json["labels"].items()}
    card = {
        "labels": {str(value): labels[value] for value in sorted(labels)},
        **{key: value for key, value in model.card.items() if key not in _FROM_THE_PLAN},
    }
    notice = {"notice": ON_A_PHANTOM} if model.card.get("phantom") else {}
    return {
        "model": str(folder),
        **notice,
        **_network_facts(model.plan, model.dataset_json),
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


def _network_facts(plan: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from panorgan.networks import count_parameters
    from panorgan.nnunet.models.model import network_of
    from panorgan.nnunet.plans import configuration_of, deep_supervision_sizes
    from panorgan.nnunet.training.memory import training_memory

    configuration = configuration_of(plan)[1]
    architecture = configuration["architecture"]["arch_kwargs"]
    with torch.device("meta"):
        network = network_of(plan, dataset_json)
    dimension = len(configuration["patch_size"])
    facts = {
        "class": configuration["architecture"]["network_class_name"],
        "parameters": count_parameters(network),
        "inputs": len(dataset_json["channel_names"]),
        "outputs": 1 + len(plan["panorgan"]["classes"]),
        "features": architecture.get("features") or architecture["features_per_stage"],
        "kernel_sizes": architecture["kernel_sizes"],
        "strides": architecture["strides"],
        "axes": "zyx"[-dimension:],
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "batch_size": configuration["batch_size"],
        "deep_supervision_sizes": deep_supervision_sizes(plan),
    }
    recipe = plan["panorgan"].get("recipe")
    if recipe is None:  # a model that others trained
        return facts
    precision = recipe["training"]["precision"]
    precision = ASSUMED if precision == "auto" else precision
    memory = training_memory(plan, dataset_json, precision)
    parts = {**vars(memory), "allowance": memory.allowance, "needed": memory.needed}
    megabytes = {f"{name}_mb": round(count / 2**20) for name, count in parts.items()}
    return {**facts, "training_gpu_memory": {"precision": precision, **megabytes}}
