"""The methods text: it follows the config, claims nothing else, and cites what it lists."""

import re

import pytest
import yaml

from panorgan.config import registry
from panorgan.config.labels import config_folder
from panorgan.config.settings import Config, load_config, merge
from panorgan.report.methods_text import REFERENCES, Facts, Trained, methods_text

DEMO = yaml.safe_load((config_folder() / "demo.yaml").read_text())
BASE = {**Config().model_dump(mode="json"), "labels": str(config_folder() / "labels.yaml")}
DEMO = merge(BASE, {key: value for key, value in DEMO.items() if key != "labels"})
CARD = {
    "epochs": 1000,
    "hours": 41.5,
    "device": "NVIDIA A100",
    "precision": "bf16",
    "parameters": 62_939_014,
    "checksum": "…",
}
FACTS = Facts(
    cases={"train": 4000, "validation": 50, "test": 0},
    scored={"validation": 50, "test": 0},
    excluded=0,
    repaired=0,
    labelled=2200,
    teacher_cases=1497,
    unknown_tumour=2503,
    teacher=Trained.of(CARD),
    student=Trained.of(CARD | {"epochs": 1500, "hours": 20.0, "parameters": 5_644_256}),
    versions={"panorgan": "0.1.0", "nnunetv2": "2.8.1", "torch": "2.13.0", "snakemake": "9.27"},
)


def text_of(changes=None, facts=FACTS):
    return str(methods_text(load_config(merge(BASE, changes or {})), facts))


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# Each sets something else than the full recipe: key, value, and what the text must then say.
CHANGES = [
    ("corrections", "mine.tsv", "manual corrections"),
    ("manifest.min_ml", 0.25, "0.25 ml"),
    ("selection.min_tumour_ml", 0.7, "at least 0.7 ml"),
    ("selection.exclude", ["a", "b"], "2 cases were left out"),
    ("selection.negatives", True, "annotators had looked everywhere"),
    ("teacher.spacing_mm", [0.9, 0.9], "0.9 × 0.9 mm"),
    ("teacher.crop", "body", "(y, x; slice by slice) of CTs cropped to the body."),
    ("teacher.patch_size", [384, 320], "384 × 320 voxels"),
    ("teacher.batch_size", 7, "7 patches"),
    ("teacher.training.iterations", 123, "123 iterations"),
    ("teacher.training.oversample_foreground", 0.5, "50 % of them"),
    ("teacher.training.optimizer.name", "adamw", "AdamW"),
    ("teacher.training.optimizer.learning_rate", 0.003, "learning rate 0.003"),
    ("teacher.training.optimizer.momentum", 0.9, "momentum 0.9 "),
    ("teacher.training.optimizer.warmup_iterations", 77, "first 77 iterations"),
    ("teacher.training.optimizer.weight_decay", 0.02, "weight decay 0.02"),
    ("teacher.training.optimizer.poly_power", 0.8, "^0.8"),
    ("teacher.training.optimizer.gradient_clip", 0.5, "norm of 0.5"),
    ("teacher.training.augmentation.p_elastic", 0.31, "p = 0.31"),
    ("teacher.training.augmentation.gamma", [0.6, 1.9], "gamma (0.6 to 1.9;"),
    ("teacher.training.augmentation.mirror_axes", [1], "along the left–right axis"),
    ("teacher.network.convs_per_stage", 3, "3 convolutions each"),
    ("pseudo_labels.organs", "models/organs", "given model (organs)"),
    ("pseudo_labels.organs", "marginal", "with the marginal loss"),
    ("pseudo_labels.organs", "none", "There were no organ pseudo-labels: organs that were unknown"),
    ("fusion.order", "annotated-first", "the annotation took precedence"),
    ("fusion.order", "inside-organs", "overlapped or touched an organ"),
    ("student.seeds", [0, 1, 2], "seeds 0, 1 and 2"),
    ("student.spacing_mm", [3.0, 1.0, 1.0], "3 × 1 × 1 mm"),
    ("student.variants", ["stage1"], "learnt the partial labels and the tumour pseudo-labels"),
    ("student.variants", ["stage2", "gated"], "A gate decided"),
    ("student.variants", ["stage2", "noise"], "shuffled organ pseudo-labels"),
    ("student.variants", ["marginal"], "No pseudo-labels were used"),
    ("rounds", 3, "3 rounds in all"),
    ("prediction.tile_step", 0.75, "step 75 %"),
    ("prediction.precision", "fp16", "in fp16"),
    ("prediction.export", "smooth", "were interpolated linearly (across"),
    ("evaluation.profile", "flare23-2024", "below 0.2"),
    ("evaluation.profile", "corrected", "with all slices"),
    ("evaluation.samples", 500, "500 bootstrap samples"),
    ("evaluation.lesion_overlap", 0.25, "at least 25 %"),
    ("evaluation.lesion_sizes_mm", [15.0], "limits at 15 mm"),
    ("phantom", {"seed": 7}, "synthetic phantoms"),
]


@pytest.mark.parametrize(("path", "value", "said"), CHANGES)
def test_a_setting_changes_the_text(path, value, said):
    before = text_of()
    after = text_of(nested(path, value))
    assert said in after
    assert said not in before
    check_citations(methods_text(load_config(merge(BASE, nested(path, value))), FACTS))


GATE = {"student": {"variants": ["stage2", "gated"]}}
OF_THE_GATE = [
    ("gate.tumour.min_ml", 0.35, "less than 0.35 ml"),
    ("gate.tumour.hu", [-10.0, 190.0], "-10 to 190 HU"),
    ("gate.tumour.max_distance_mm", 35.0, "further than 35 mm"),
    ("gate.tumour.min_mean_probability", 0.65, "mean probability below 0.65"),
    ("gate.tumour.min_max_probability", 0.95, "maximum below 0.95"),
    ("gate.organs.min_share", 0.2, "below 20 % of its volume"),
    ("gate.organs.max_volume_deviation", 4.5, "more than 4.5,"),
    ("gate.organs.max_position_deviation", 6.5, "more than 6.5 robust"),
    ("gate.organs.max_doubtful", 0.4, "more than 40 % of its organs"),
    ("gate.quantile", 0.05, "where 5 % of the annotated tumours"),
]


@pytest.mark.parametrize(("path", "value", "said"), OF_THE_GATE)
def test_the_gate_is_said_only_where_it_was_used(path, value, said):
    assert said not in text_of(GATE)
    assert said in text_of(merge(GATE, nested(path, value)))
    assert text_of(nested(path, value)) == text_of()
    assert "gate decided" not in text_of(nested(path, value))


def test_rounds_say_who_labels_again():
    two = {"rounds": 2}
    assert "one of 5 networks each, trained without the part" in text_of(two)
    assert "one network that had trained on all of them" in text_of({**two, "folds": 1})
    assert "rounds" not in text_of({"student": {"variants": ["stage1"]}, **two})
    assert "rounds" not in text_of()
    unstable = {"gate": {"max_instability": 0.3}}
    assert "by more than 30 % of their foreground" in text_of(merge(GATE, {**two, **unstable}))
    assert "by more than 30 %" not in text_of(merge(GATE, unstable))


def test_without_pseudo_labels_there_is_no_teacher():
    methods = methods_text(
        load_config(merge(BASE, {"student": {"variants": ["partial", "marginal"]}})), FACTS
    )
    assert "Teacher" not in [paragraph.title for paragraph in methods.paragraphs]
    assert not any("CA-Net" in text for text in methods.citations)
    assert any("Marginal loss" in text for text in methods.citations)
    assert "(partial) the partial labels of the labelled cases alone" in str(methods)


def test_organ_pseudo_labels_are_said_only_where_there_were_some():
    assert "came with the training cases" in text_of()
    assert "came with 12 training cases" in text_of(facts=Facts(given_organs=12))
    without = text_of(facts=Facts(given_organs=0))
    assert "rgan pseudo-label" not in without
    assert "In fusion, a tumour pseudo-label took precedence over the annotation." in without
    model = {"pseudo_labels": {"organs": "models/organs"}}
    assert "given model (organs)" in text_of(model, Facts(given_organs=0))


def test_what_is_switched_off_is_not_mentioned():
    off = {
        f"p_{name}": 0.0
        for name in (
            *("rotation", "scaling", "elastic", "noise", "blur", "brightness", "contrast"),
            *("low_resolution", "gamma", "gamma_inverted"),
        )
    }
    recipe = {"training": {"augmentation": {**off, "mirror_axes": []}}}
    text = text_of({"teacher": recipe, "student": recipe})
    assert text.count("Patches were not augmented.") == 2
    for word in ("rotation", "elastic", "gamma", "mirroring", "blur", "noise"):
        assert word not in text
    assert "AdamW" not in text
    assert "noise" not in text
    adam = {"training": {"optimizer": {"name": "adamw"}}}
    text = text_of({"teacher": adam, "student": adam})
    assert "Nesterov" not in text
    assert "importance of initialization" not in text


def test_dice_is_over_what_each_network_takes_it_over():
    assert text_of().count("soft Dice over the batch") == 1
    assert text_of().count("soft Dice over each sample") == 1
    changed = text_of(nested("teacher.training.batch_dice", False))
    assert changed.count("soft Dice over each sample") == 2


def test_a_gated_student_alone_says_what_the_gate_was_laid_over():
    text = text_of({"student": {"variants": ["gated"]}})
    assert (
        "learnt the partial labels and all pseudo-labels without the pseudo-labels that the gate "
        "did not trust" in text
    )
    assert "the same" not in text


def test_the_demo_says_that_it_is_synthetic():
    methods = methods_text(load_config(DEMO), FACTS)
    assert methods.paragraphs[0].text.startswith("All CTs were synthetic phantoms")
    assert "say nothing about patients" in methods.paragraphs[0].text
    assert "AdamW" in str(methods)
    check_citations(methods)


def test_what_really_ran_wins_over_what_was_planned():
    facts = {**vars(FACTS), "student": Trained(epochs=12)}
    text = text_of(facts=Facts(**facts))
    assert "trained for 12 epochs of 250 iterations" in text
    assert "1,500 epochs" not in text
    assert "trained for 1,500 epochs" in text_of(facts=Facts(cases={"train": 3}))
    assert "took 41.5 hours (NVIDIA A100, mixed precision with bf16 [" in text_of()
    single = Facts(teacher=Trained(precision="fp32"))
    assert "Hardware and precision: single precision." in text_of(facts=single)
    assert "Mixed Precision Training" not in text_of(facts=single)


def test_a_given_plan_is_described_from_what_ran():
    config = load_config(merge(BASE, {"student": {"plan": "plans.json"}}))
    recipe = load_config(BASE).student.model_dump(mode="json") | {"batch_size": 9}
    unknown = str(methods_text(config, Facts()))
    student = unknown[unknown.index("\nStudent\n") : unknown.index("\nInference\n")]
    assert "was given, not made from these data" in student
    assert "patches" not in student
    assert "4 × 1.2" not in unknown[unknown.index("\nStudent\n") :]
    plan = {"panorgan": {"recipe": recipe}}
    known = str(methods_text(config, Facts(student=Trained.of(CARD, plan))))
    assert "batches of 9 patches" in known
    assert "4 × 1.2 × 1.2 mm" in known


@pytest.mark.parametrize("config", [BASE, DEMO, merge(BASE, GATE)])
@pytest.mark.parametrize(
    "facts",
    [Facts(), Facts(scored={"validation": 0}), Facts(cases={"train": 1}, labelled=0), FACTS],
)
def test_nothing_is_made_up_where_nothing_is_known(config, facts):
    methods = methods_text(load_config(config), facts)
    check_citations(methods)
    text = str(methods)
    assert not re.search(r"\b(None|nan)\b", text)
    for strange in ("{", "}", "<", "  ", " ,", " .", "..", "()", "[]"):
        assert strange not in text, strange
    for paragraph in methods.paragraphs:
        assert paragraph.text.endswith(".")
        assert paragraph.text[0].isupper()


def test_without_references_nothing_is_said_of_scores():
    text = text_of(facts=Facts(scored={"validation": 0, "test": 0}))
    assert "nothing was scored" in text
    assert "NSD" not in text


def check_citations(methods):
    """Every work is cited, each number is listed, and numbers come in the order of citation."""
    body = " ".join(paragraph.text for paragraph in methods.paragraphs)
    numbers = [
        int(number) for group in re.findall(r"\[([\d, ]+)\]", body) for number in group.split(", ")
    ]
    assert list(dict.fromkeys(numbers)) == list(range(1, len(methods.citations) + 1))
    assert len({*methods.citations}) == len(methods.citations)
    assert {*methods.citations} <= {*REFERENCES.values()}
    for number, citation in enumerate(methods.citations, 1):
        assert f"\n[{number}] {citation}\n" in str(methods)


def test_tolerances_are_those_of_the_class_table(tmp_path):
    table = yaml.safe_load((config_folder() / "labels.yaml").read_text())
    table["labels"][0]["tolerance_mm"] = 4.5
    table["labels"][0]["crop_slices"] = True
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(table))
    text = text_of({"labels": str(path)})
    assert "4.5 mm: liver;" in text
    assert "Liver, aorta, inferior vena cava and oesophagus were compared on the slices" in text
    assert "2 mm: aorta, inferior vena cava, right adrenal gland, left adrenal gland," in text_of()


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("fusion.order", registry.ORDERS),
        ("evaluation.profile", registry.PROFILES),
        ("teacher.network.name", registry.NETWORKS),
    ],
)
def test_whatever_a_config_may_name_has_its_sentence(path, choices):
    for name, choice in choices.items():
        said, *_ = choice.methods.split(" [@")
        assert said in text_of(nested(path, name))


def test_all_variants_at_once_are_told_apart():
    text = text_of(nested("student.variants", [*registry.VARIANTS]))
    for name, variant in registry.VARIANTS.items():
        assert f"({name}) {variant.methods.format(stage2='the same')}" in text
