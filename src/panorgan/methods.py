"""A text of methods for a paper, of the config that really ran and of what is known of the run.

It says what was done and nothing else: what a config leaves out or switches off is not mentioned,
and facts that nobody recorded are not filled in.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from panorgan.config import Augmentation, Config, Optimizer, Recipe, fused_labels
from panorgan.labels import Label, Labels, load_labels
from panorgan.pages import duration
from panorgan.registry import (
    DECODER_STAGES,
    GATED,
    ITERATED,
    MARGINAL,
    NETWORKS,
    NOISE,
    ORDERS,
    PROFILES,
    STAGE1,
    STAGE2,
    VARIANTS,
)

REFERENCES = {
    "method": "Z. Zhang et al. (team zzm3zz). A Semi-Supervised Abdominal Multi-Organ Pan-Cancer "
    "Segmentation Framework with Knowledge Distillation and Multi-Label Fusion. MICCAI FLARE "
    "2023.",
    "nnunet": "F. Isensee, P. F. Jaeger, S. A. A. Kohl, J. Petersen, K. H. Maier-Hein. nnU-Net: a "
    "self-configuring method for deep learning-based biomedical image segmentation. Nature Methods "
    "18, 203–211, 2021.",
    "canet": "R. Gu et al. CA-Net: Comprehensive Attention Convolutional Neural Networks for "
    "Explainable Medical Image Segmentation. IEEE Transactions on Medical Imaging 40(2), 699–711, "
    "2021.",
    "nonlocal": "X. Wang, R. Girshick, A. Gupta, K. He. Non-local Neural Networks. CVPR, "
    "7794–7803, 2018.",
    "marginal": "G. Shi, L. Xiao, Y. Chen, S. K. Zhou. Marginal loss and exclusion loss for "
    "partially supervised multi-organ segmentation. Medical Image Analysis 70, 101979, 2021.",
    "deep": "C.-Y. Lee, S. Xie, P. Gallagher, Z. Zhang, Z. Tu. Deeply-Supervised Nets. AISTATS, "
    "PMLR 38, 562–570, 2015.",
    "nesterov": "I. Sutskever, J. Martens, G. Dahl, G. Hinton. On the importance of initialization "
    "and momentum in deep learning. ICML, PMLR 28(3), 1139–1147, 2013.",
    "adamw": "I. Loshchilov, F. Hutter. Decoupled Weight Decay Regularization. ICLR, 2019.",
    "mixed": "P. Micikevicius et al. Mixed Precision Training. ICLR, 2018.",
    "flare23": "J. Ma et al. Automatic Organ and Pan-cancer Segmentation in Abdomen CT: the FLARE "
    "2023 Challenge. arXiv:2408.12534, 2024.",
    "dice": "L. R. Dice. Measures of the Amount of Ecologic Association Between Species. Ecology "
    "26(3), 297–302, 1945.",
    "nsd": "S. Nikolov et al. Clinically Applicable Segmentation of Head and Neck Anatomy for "
    "Radiotherapy: Deep Learning Algorithm Development and Validation Study. Journal of Medical "
    "Internet Research 23(7), e26151, 2021.",
    "bootstrap": "B. Efron, R. J. Tibshirani. An Introduction to the Bootstrap. Chapman & Hall, "
    "1993.",
    "pytorch": "A. Paszke et al. PyTorch: An Imperative Style, High-Performance Deep Learning "
    "Library. NeurIPS 32, 8024–8035, 2019.",
    "snakemake": "F. Mölder et al. Sustainable data analysis with Snakemake. F1000Research 10, 33, "
    "2021.",
}
"""Cited works by the key that the text uses."""

SOFTWARE = {
    "panorgan": ("panorgan", ""),
    "nnunetv2": ("nnU-Net", "nnunet"),
    "torch": ("PyTorch", "pytorch"),
    "snakemake": ("Snakemake", "snakemake"),
    "python": ("Python", ""),
}
"""Names and citations of packages; of others the package's own name is given."""

SPLITS = ("train", "validation", "test")
SPLIT_TEXTS = {"train": "training", "validation": "validation", "test": "test"}
AXES = {2: ("anterior–posterior", "left–right")}
AXES[3] = ("inferior–superior", *AXES[2])
"""Patch axes of networks of each dimension."""


@dataclass(frozen=True)
class Trained:
    """What is known of a finished training.

    Attributes
    ----------
    epochs, hours, device, precision, parameters
        As the model's card has them.
    recipe
        The recipe in the model's plan (``plans.json``, ``panorgan.recipe``); it is the config's,
        unless a given plan was used.
    """

    epochs: int | None = None
    hours: float | None = None
    device: str | None = None
    precision: str | None = None
    parameters: int | None = None
    recipe: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, card: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> "Trained":
        """From a model's ``card.json`` and ``plans.json``."""
        keys = ("epochs", "hours", "device", "precision", "parameters")
        recipe = (plan or {}).get("panorgan", {}).get("recipe")
        return cls(**{key: card.get(key) for key in keys}, recipe=recipe)


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its config; None where nobody recorded it.

    Attributes
    ----------
    cases
        Number of used cases by split: train, validation, test.
    scored
        Number of cases with a known truth by split.
    excluded, repaired
        Cases that could not be used, and cases whose header was mended.
    labelled
        Training cases with a label.
    teacher_cases
        Cases that the teacher trained on.
    unknown_tumour
        Training cases that got a tumour pseudo-label.
    given_organs
        Training cases whose organ pseudo-label the case table names.
    versions
        Package -> version.
    """

    cases: Mapping[str, int] = field(default_factory=dict)
    scored: Mapping[str, int] | None = None
    excluded: int | None = None
    repaired: int | None = None
    labelled: int | None = None
    teacher_cases: int | None = None
    unknown_tumour: int | None = None
    given_organs: int | None = None
    teacher: Trained = Trained()
    student: Trained = Trained()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Paragraph:
    """A piece of the text under a heading."""

    title: str
    text: str


@dataclass(frozen=True)
class Methods:
    """The text, and the works that it cites: ``[1]`` is the first of `citations`."""

    paragraphs: tuple[Paragraph, ...]
    citations: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{paragraph.title}\n{paragraph.text}" for paragraph in self.paragraphs]
        listed = [f"[{number}] {text}" for number, text in enumerate(self.citations, 1)]
        return "\n\n".join([*parts, "References\n" + "\n".join(listed)]) + "\n"


def methods_text(config: Config, facts: Facts) -> Methods:
    """The methods of a run.

    Parameters
    ----------
    config
        As `config.load_config` gives it.
    facts
        Of the run.

    Returns
    -------
    Methods
        Plain paragraphs and the works they cite, each once, numbered in the order of citation.

    Raises
    ------
    Problems
        If the config's class table cannot be read.
    """
    writer = _Writer(config, facts, load_labels(config.labels))
    sections = (
        ("Data", writer.data),
        ("Preprocessing", writer.preprocessing),
        ("Teacher", writer.teacher),
        ("Pseudo-labels and fusion", writer.fusion),
        ("Student", writer.student),
        ("Inference", writer.inference),
        ("Evaluation", writer.evaluation),
        ("Software", writer.software),
    )
    cited: dict[str, int] = {}

    def number(mark: re.Match[str]) -> str:
        return f"[{cited.setdefault(mark[1], len(cited) + 1)}]"

    paragraphs = []
    for title, write in sections:
        if text := " ".join(write()):
            paragraphs.append(Paragraph(title, re.sub(r"\[@(\w+)\]", number, text)))
    return Methods(tuple(paragraphs), tuple(REFERENCES[key] for key in cited))


class _Writer:
    """Writes the paragraphs, each a list of sentences; ``[@nnunet]`` cites a work by its key."""

    def __init__(self, config: Config, facts: Facts, labels: Labels):
        self.config = config
        self.facts = facts
        self.labels = labels
        self.variants = config.student.variants
        self.fused = {name for _, name in fused_labels(config)} - {"partial"}

    # Data

    def data(self) -> list[str]:
        config, facts = self.config, self.facts
        text = []
        if config.phantom:
            text.append(
                f"All CTs were synthetic phantoms of nominally {_times(config.phantom.shape)} "
                f"voxels of {_times(config.phantom.spacing_mm)} mm (seed {config.phantom.seed}): "
                "the results say nothing about patients."
            )
        counts = [
            f"{facts.cases[split]:,} {SPLIT_TEXTS[split]}"
            for split in SPLITS
            if facts.cases.get(split)
        ]
        if counts:
            text.append(f"The data were {_and(counts)} CTs; no image was in two splits.")
        if facts.excluded:
            text.append(f"Excluded were {_count(facts.excluded, 'case')} that could not be used.")
        if facts.repaired:
            text.append(
                f"The headers of {_count(facts.repaired, 'case')} with inconsistent axes were "
                "mended, which moved no corner of a volume by more than "
                f"{config.manifest.max_repair_mm:g} mm."
            )
        organs = [_title(label) for label in self.labels.organs]
        text.append(
            f"The classes were {_count(len(organs), 'organ')} ({_and(organs)}) and tumours."
        )
        if facts.labelled is not None:
            text.append(f"Of the training cases {facts.labelled:,} had a label.")
        text.append(
            "Each class of each case was either annotated, absent (annotators had looked for it "
            "and found none) or unknown."
        )
        if config.manifest.min_ml:
            text.append(
                f"A class of less than {config.manifest.min_ml:g} ml in a label did not count as "
                "annotated."
            )
        if config.corrections:
            text.append("A table of manual corrections of labels and annotations took precedence.")
        return text

    def preprocessing(self) -> list[str]:
        return [
            "All volumes were brought to the orientation RAS. CTs were resampled to the voxels of "
            "each network by cubic interpolation, labels linearly by class; where one spacing was "
            "over three times another, in plane only, with nearest neighbours across slices. "
            "Intensities were clipped to the 0.5 and 99.5 percentiles of those of the training "
            "foreground, and normalised by their mean and standard deviation [@nnunet]."
        ]

    # Networks

    def teacher(self) -> list[str]:
        if not self.fused:
            return []
        config, facts = self.config, self.facts
        selection = config.selection
        who = "the training cases"
        if facts.teacher_cases is not None:
            who = _count(facts.teacher_cases, "training case")
        who += " with an annotated tumour"
        if selection.min_tumour_ml:
            who += f" of at least {selection.min_tumour_ml:g} ml"
        if selection.negatives:
            who += ", or with none although annotators had looked everywhere,"
        text = [
            f"Following [@method], a teacher network learnt to tell tumours from all "
            f"else. It was trained on {who}".rstrip(",")
            + "."
        ]
        if selection.exclude:
            text.append(
                f"{_count(len(selection.exclude), 'case')} were left out of its training by name."
            )
        return [*text, *self._training(config.teacher, facts.teacher, [config.teacher.seed])]

    def student(self) -> list[str]:
        config = self.config
        text = [self._learnt_from()]
        if MARGINAL in self.variants:
            text.append(
                "With the marginal loss the probabilities of the classes that are unknown in a "
                "case are added to that of the background [@marginal]."
            )
        return [*text, *self._training(config.student, self.facts.student, config.student.seeds)]

    def _learnt_from(self) -> str:
        """What the students learnt."""
        stage2 = "the same" if STAGE2 in self.variants else VARIANTS[STAGE2].methods
        listed = [VARIANTS[variant].methods.format(stage2=stage2) for variant in self.variants]
        if len(listed) == 1:
            return f"The student, a smaller network for all classes, learnt {listed[0]}."
        named = "; ".join(
            f"({variant}) {text}" for variant, text in zip(self.variants, listed, strict=True)
        )
        return (
            f"{_capital(_few(len(listed)))} variants of the student, a smaller network for all "
            f"classes, were trained, which learnt {named}."
        )

    def _training(
        self, configured: Recipe, trained: Trained, seeds: Sequence[int]
    ) -> Iterable[str]:
        """Network and training of one recipe."""
        recipe = configured
        if trained.recipe:
            known = {key: trained.recipe[key] for key in Recipe.model_fields}
            recipe = Recipe.model_validate(known)
        if configured.plan:
            yield (
                "Its plan (preprocessing, network and schedule) was given, not made from these "
                "data."
            )
            if not trained.recipe:
                return
        yield self._network(recipe, trained)
        yield f"It saw voxels of {_times(recipe.spacing_mm)} mm ({_axes_text(recipe.spacing_mm)})."
        yield self._loss(recipe)
        yield self._schedule(recipe, trained, seeds)
        yield _augmentation(recipe.training.augmentation, len(recipe.patch_size))

    def _network(self, recipe: Recipe, trained: Trained) -> str:
        network, dimension = recipe.network, len(recipe.patch_size)
        size = f" ({trained.parameters:,} parameters)" if trained.parameters else ""
        stages = (
            f"{len(network.features)} stages of {_list(network.features)} channels, "
            f"{_count(network.convs_per_stage, 'convolution')} each, kernels of "
            f"{_kernels(network.kernel_sizes)} and an overall stride of "
            f"{_times(_product(network.strides))}"
        )
        kind = NETWORKS[network.name]
        text = f"The network was a {dimension}D {kind.methods}{size}: {stages}."
        kinds = Counter(kind.decoder_kinds(len(network.features) - 1))
        if {*kinds} == {"plain"}:
            return text
        first, *others = (f"{_few(count)} {DECODER_STAGES[name]}" for name, count in kinds.items())
        return (
            f"{text} From the deepest up the decoder has {first} stage, then {_and(others)}, all "
            "of which end in channel attention."
        )

    def _loss(self, recipe: Recipe) -> str:
        over = "the batch" if recipe.training.batch_dice else "each sample"
        resolutions = len(recipe.network.features) - 1
        text = f"The loss was the sum of cross-entropy and soft Dice over {over}"
        if resolutions > 1:
            text += (
                f", with deep supervision [@deep] at {resolutions} resolutions whose "
                "weights halve from each to the next, the lowest having none"
            )
        return text + "."

    def _schedule(self, recipe: Recipe, trained: Trained, seeds: Sequence[int]) -> str:
        training = recipe.training
        epochs = trained.epochs or training.epochs
        share = f"{training.oversample_foreground:.0%}".replace("%", " %")
        parts = [
            f"It was trained for {_count(epochs, 'epoch')} of "
            f"{_count(training.iterations, 'iteration')} on batches of "
            f"{_count(recipe.batch_size, 'patch')} of {_times(recipe.patch_size)} voxels, "
            f"{share} of them centred on foreground, by {self._optimizer(training.optimizer)}; "
            "the weights after the last epoch were used."
        ]
        if len(seeds) > 1:
            parts.append(f"This was done with the seeds {_and(map(str, seeds))}.")
        how = [trained.device] if trained.device else []
        if trained.precision in ("bf16", "fp16"):
            how.append(f"mixed precision with {trained.precision} [@mixed]")
        elif trained.precision:
            how.append("single precision")
        if trained.hours is not None:
            details = f" ({', '.join(how)})" if how else ""
            parts.append(f"A training took {duration(trained.hours)}{details}.")
        elif how:
            parts.append(f"Hardware and precision: {', '.join(how)}.")
        return " ".join(parts)

    def _optimizer(self, optimizer: Optimizer) -> str:
        if optimizer.name == "adamw":
            text = "AdamW [@adamw] ("
        elif optimizer.momentum:
            text = (
                f"stochastic gradient descent with Nesterov momentum {optimizer.momentum:g} "
                f"[@nesterov] ("
            )
        else:
            text = "stochastic gradient descent ("
        text += f"learning rate {optimizer.learning_rate:g}"
        if optimizer.warmup_iterations:
            text += f", reached over the first {_count(optimizer.warmup_iterations, 'iteration')}"
        if optimizer.poly_power:
            text += f", falling with (1 - epoch/epochs)^{optimizer.poly_power:g}"
        if optimizer.weight_decay:
            text += f"; weight decay {optimizer.weight_decay:g}"
        return text + f"; gradients clipped to a norm of {optimizer.gradient_clip:g})"

    # Labels

    def fusion(self) -> list[str]:
        if not self.fused:
            return ["No pseudo-labels were used."]
        unknown = "the training cases"
        if self.facts.unknown_tumour is not None:
            unknown = _count(self.facts.unknown_tumour, "training case")
        text = [
            f"The teacher labelled the tumours of {unknown} in which they had not been looked for "
            "(or not everywhere), without test-time augmentation."
        ]
        if self._fuses_organs:
            text.append(self._organ_labels())
        text += [self._order(), *self._gate(), *self._rounds()]
        if NOISE in self.variants:
            text.append(
                "As a control, blocks of about 20 mm of the organ pseudo-labels changed places at "
                "random."
            )
        return text

    @property
    def _fuses_organs(self) -> bool:
        """Whether there are organ pseudo-labels, and fused labels that take them."""
        given = self.config.pseudo_labels.organs != "cases" or self.facts.given_organs != 0
        return given and bool(self.fused - {STAGE1})

    def _organ_labels(self) -> str:
        source = self.config.pseudo_labels.organs
        if source == "cases":
            given = self.facts.given_organs
            cases = "the training cases" if given is None else _count(given, "training case")
            return f"Organ pseudo-labels were label maps that came with {cases}."
        if source == MARGINAL:
            return (
                "Organ pseudo-labels were made by a student that had learnt from the partial "
                "labels with the marginal loss, which adds the probabilities of a case's unknown "
                "classes to that of the background [@marginal]."
            )
        return (
            f"Organ pseudo-labels were predicted by a given model ({PurePath(source).name}) in "
            "the training cases in which an organ was unknown."
        )

    def _order(self) -> str:
        text = f"In fusion, {ORDERS[self.config.fusion.order].methods}"
        if not self._fuses_organs:
            return f"{text}."
        return (
            f"{text}, and both over the organ pseudo-label, which filled what was still "
            "background, and only with organs that were unknown in the case."
        )

    def _gate(self) -> Iterable[str]:
        """What the gate does, if any student learnt by it."""
        if GATED not in self.variants:
            return
        gate = self.config.gate
        tumour, organs = gate.tumour, gate.organs
        text = "A gate decided on each connected piece of the pseudo-labels. "
        if gate.quantile is None:
            text += (
                f"Tumour pieces of less than {tumour.min_ml:g} ml or with a mean outside "
                f"{tumour.hu[0]:g} to {tumour.hu[1]:g} HU were removed; those further than "
                f"{tumour.max_distance_mm:g} mm from every known organ, or with a mean probability "
                f"below {tumour.min_mean_probability:g} or a maximum below "
                f"{tumour.min_max_probability:g}, were ignored in training."
            )
        else:
            text += (
                "Tumour pieces were removed by their volume and mean HU and ignored in training "
                "by their distance to the organs and their probabilities; each threshold was set "
                f"where {100 * gate.quantile:g} % of the annotated tumours found by networks "
                f"that had not trained on their case ({self.config.folds} folds) would be lost."
            )
        yield text
        yield (
            "Pieces of an organ beside its largest were removed below "
            f"{100 * organs.min_share:g} % of its volume and ignored above. Organs whose log "
            f"volume was more than {organs.max_volume_deviation:g}, or whose place among the other "
            "organs more than "
            f"{organs.max_position_deviation:g} robust standard deviations from what is usual, "
            "and pairs with swapped sides, were ignored; a case with more than "
            f"{100 * organs.max_doubtful:g} % of its organs ignored was not learnt from."
        )
        if self.config.rounds > 1:
            yield (
                "Neither were cases whose pseudo-labels changed between rounds by more than "
                f"{100 * gate.max_instability:g} % of their foreground."
            )

    def _rounds(self) -> Iterable[str]:
        config = self.config
        again = [variant for variant in self.variants if variant in ITERATED]
        if config.rounds == 1 or not again:
            return
        who = "one network that had trained on all of them"
        if config.folds > 1:
            who = (
                f"one of {config.folds} networks each, trained without the part of the cases "
                "that it labelled"
            )
        yield (
            f"This was repeated for {config.rounds} rounds in all: from the second on the "
            "pseudo-labels of tumours and organs were made by the student of the round before, "
            f"the training cases being labelled by {who}."
        )

    # Predictions and scores

    def inference(self) -> list[str]:
        prediction, recipe = self.config.prediction, self.config.student
        step = f"{100 * prediction.tile_step:g} %"
        text = (
            f"Predictions were made with a sliding window (step {step} of the patch, Gaussian "
            "weights) without test-time augmentation"
        )
        if prediction.precision != "auto":
            text += f", in {prediction.precision}"
        grid = self.facts.student.recipe or {}
        spacing = grid.get("spacing_mm") or (None if recipe.plan else recipe.spacing_mm)
        where = f" of {_times(spacing)} mm" if spacing else ""
        return [
            f"{text}. The most probable class was taken on the network's grid{where}, and the "
            "label map was brought to the CT's own grid by nearest-neighbour interpolation."
        ]

    def evaluation(self) -> list[str]:
        config, scored = self.config, self.facts.scored
        if scored is not None and not any(scored.values()):
            return ["No case had a reference, so nothing was scored."]
        text = []
        if scored:
            counts = [f"{scored[s]:,} {SPLIT_TEXTS[s]}" for s in SPLITS if scored.get(s)]
            text.append(f"Scores are of {_and(counts)} cases.")
        text.append(self._rules())
        text.append(
            "A class that neither prediction nor reference has counts 1, one that only one of "
            "them has 0; a class whose truth is unknown in a case is not scored. Scores are "
            "averaged over cases, and the means of the classes over the organs."
        )
        lesions = config.evaluation
        text.append(
            "The 95th percentile of the surface distances (HD95) is given where both have the "
            "class. Tumours were also compared lesion by lesion (26-connected components): a "
            "lesion of the reference counts as found, and one of the prediction as true, if at "
            f"least {100 * lesions.lesion_overlap:g} % of its voxels are tumour in the other; "
            "sizes are diameters of spheres of equal volume, with limits at "
            f"{_and(f'{mm:g}' for mm in lesions.lesion_sizes_mm)} mm."
        )
        text.append(
            f"Intervals are 95 % percentile intervals of {lesions.samples:,} bootstrap samples of "
            f"cases [@bootstrap]."
        )
        return text

    def _rules(self) -> str:
        """The profile's rules of DSC and NSD."""
        name = self.config.evaluation.profile
        rules = PROFILES[name]
        tolerances: dict[float, list[str]] = defaultdict(list)
        for label in self.labels.labels:
            tolerances[label.tolerance_mm].append(_title(label))
        listed = "; ".join(f"{mm:g} mm: {_and(tolerances[mm])}" for mm in sorted(tolerances))
        text = (
            f"The Dice similarity coefficient (DSC) [@dice] and the normalised surface "
            f"distance (NSD) [@nsd] were computed {rules.methods} [@flare23]. "
            f"Tolerances of the NSD were {listed}."
        )
        cropped = [_title(label) for label in self.labels.labels if label.crop_slices]
        if cropped:
            but = ", without the last of these" if rules.drops_last_slice else ""
            text += (
                f" {_capital(_and(cropped))} were compared on the slices that the reference "
                f"annotates{but}."
            )
        if rules.nsd_floor:
            text += f" The NSD is 0 where the DSC is below {rules.nsd_floor:g}."
        return text

    def software(self) -> list[str]:
        versions = {name: text for name, text in self.facts.versions.items() if text}
        versions = {"snakemake": "", **versions}
        order = [*SOFTWARE, *sorted(versions.keys() - SOFTWARE.keys())]
        named = []
        for name in order:
            if name in versions:
                title, key = SOFTWARE.get(name, (name, ""))
                named.append(" ".join(filter(None, (title, versions[name], key and f"[@{key}]"))))
        return [f"The workflow ran with {_and(named)}."]


def _augmentation(settings: Augmentation, dimension: int) -> str:
    """Which random changes were made, with their ranges and probabilities."""
    a = settings
    possible = (
        (a.p_rotation, "rotation", f"in plane, up to {a.rotation_degrees:g}°"),
        (a.p_scaling, "scaling", f"by {_range(a.scaling)}"),
        (
            a.p_elastic,
            "elastic deformation",
            f"α {_range(a.elastic_alpha)}, σ {_range(a.elastic_sigma)} voxels",
        ),
        (a.p_noise, "Gaussian noise", f"σ {_range(a.noise_variance)}"),
        (a.p_blur, "Gaussian blur", f"σ {_range(a.blur_sigma)} voxels"),
        (a.p_brightness, "brightness", f"times {_range(a.brightness)}"),
        (a.p_contrast, "contrast", f"times {_range(a.contrast)}"),
        (a.p_low_resolution, "simulated low resolution", f"zoom {_range(a.low_resolution)}"),
        (a.p_gamma, "gamma", _range(a.gamma)),
        (a.p_gamma_inverted, "gamma of the inverted image", _range(a.gamma)),
    )
    used = [f"{name} ({how}; p = {p:g})" for p, name, how in possible if p]
    mirrored = [AXES[dimension][axis] for axis in sorted(a.mirror_axes)]
    if mirrored:
        used.append(f"mirroring along the {_and(mirrored)} {'axes' if mirrored[1:] else 'axis'}")
    if not used:
        return "Patches were not augmented."
    return f"Patches were augmented by {_and(used)}."


# Words


def _title(label: Label) -> str:
    return label.title[0].lower() + label.title[1:]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _count(number: int, word: str) -> str:
    plural = word + ("es" if word.endswith(("s", "tch")) else "s")
    return f"{number:,} {word if number == 1 else plural}"


def _and(parts: Iterable[str]) -> str:
    parts = list(parts)
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)


def _list(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _range(limits: Sequence[float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


def _product(strides: Sequence[Sequence[int]]) -> list[int]:
    product = [1] * len(strides[0])
    for stride in strides:
        product = [one * two for one, two in zip(product, stride, strict=True)]
    return product


def _kernels(sizes: Sequence[Sequence[int]]) -> str:
    """Kernels by stage, equal ones together."""
    texts = list(dict.fromkeys(_times(size) for size in sizes))
    return texts[0] if len(texts) == 1 else f"{texts[0]}, then {_and(texts[1:])}"


def _axes_text(spacing: Sequence[float]) -> str:
    return "z, y, x" if len(spacing) == 3 else "y, x; slice by slice"


def _few(number: int) -> str:
    return {1: "one", 2: "two", 3: "three"}.get(number, str(number))
