"""A text of methods for a paper, of the config that really ran and of what is known of the run.

It says what was done and nothing else: what a config leaves out or switches off is not mentioned,
and facts that nobody recorded are not filled in. The sentences are in `templates/methods.txt.j2`
and, of what a config chooses by name, in `registry`.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from panorgan.cases.table import SPLITS
from panorgan.config import registry
from panorgan.config.labels import Label, load_labels
from panorgan.config.settings import Config, Recipe, fused_labels
from panorgan.io.formats import duration
from panorgan.report.pages import render
from panorgan.scoring.bootstrap import FEWEST

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

    def followed(self, configured: Recipe) -> Recipe | None:
        """The recipe that was followed, the given one if there is one; None if it is not known."""
        if self.recipe:
            known = {key: self.recipe[key] for key in Recipe.model_fields if key in self.recipe}
            return Recipe.model_validate(known)
        return None if configured.plan else configured


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
        As `config.settings.load_config` gives it.
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
    fused = {name for _, name in fused_labels(config)} - {registry.PARTIAL}
    given = config.pseudo_labels.organs == registry.CASES and facts.given_organs != 0
    text = render(
        "methods.txt.j2",
        registry=registry,
        config=config,
        facts=facts,
        labels=load_labels(config.labels),
        variants=[registry.VARIANTS[name] for name in config.student.variants],
        fused=fused,
        fuses_organs=(config.pseudo_labels.predicted or given) and bool(fused - {registry.STAGE1}),
        organs_model=PurePath(config.pseudo_labels.organs).name,
        software=_software(facts.versions),
        fewest=FEWEST,
        **_WORDS,
    )
    cited: dict[str, int] = {}

    def number(mark: re.Match[str]) -> str:
        return f"[{cited.setdefault(mark[1], len(cited) + 1)}]"

    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    paragraphs = []
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        # The template breaks lines where it likes, before a comma too.
        if body := re.sub(r" (?=[.,;:)])", "", " ".join(body.split())):
            paragraphs.append(Paragraph(title, re.sub(r"\[@(\w+)\]", number, body)))
    return Methods(tuple(paragraphs), tuple(REFERENCES[key] for key in cited))


def _decoder(network: registry.Network, stages: int) -> str:
    """The stages of a decoder from the deepest up; empty if all are plain."""
    kinds = Counter(network.decoder_kinds(stages))
    if {*kinds} == {"plain"}:
        return ""
    return _listed(f"{_few(kinds[kind])} {registry.DECODER_STAGES[kind]}" for kind in kinds)


def _software(versions: Mapping[str, str]) -> list[str]:
    """Packages with a known version, and Snakemake in any case."""
    known = {"snakemake": "", **{name: text for name, text in versions.items() if text}}
    named = []
    for name in [*SOFTWARE, *sorted(known.keys() - SOFTWARE.keys())]:
        if name in known:
            title, key = SOFTWARE.get(name, (name, ""))
            named.append(" ".join(filter(None, (title, known[name], key and f"[@{key}]"))))
    return named


def _by_split(cases: Mapping[str, int]) -> str:
    """How many cases each split has: ``4,000 training and 50 validation``."""
    return _listed(
        f"{cases[split]:,} {'training' if split == 'train' else split}"
        for split in SPLITS
        if cases.get(split)
    )


def _titles(labels: Iterable[Label]) -> str:
    return _listed(label.title[0].lower() + label.title[1:] for label in labels)


def _count(number: int, word: str) -> str:
    plural = word + ("es" if word.endswith(("s", "tch")) else "s")
    return f"{number:,} {word if number == 1 else plural}"


def _few(number: int) -> str:
    return {1: "one", 2: "two", 3: "three"}.get(number, str(number))


def _listed(parts: Iterable[Any]) -> str:
    texts = [f"{part:g}" if isinstance(part, float) else str(part) for part in parts]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)


def _kernels(sizes: Iterable[Sequence[int]]) -> str:
    """Kernels by stage, equal ones together."""
    first, *others = dict.fromkeys(map(_times, sizes))
    return f"{first}, then {_listed(others)}" if others else first


_WORDS = {
    "by_split": _by_split,
    "capital": lambda text: text[0].upper() + text[1:],
    "count": _count,
    "decoder": _decoder,
    "duration": duration,
    "few": _few,
    "g": "{:g}".format,
    "kernels": _kernels,
    "listed": _listed,
    "product": lambda strides: map(math.prod, zip(*strides, strict=True)),
    "share": lambda part: f"{100 * part:g} %",
    "span": lambda limits: f"{limits[0]:g} to {limits[1]:g}",
    "times": _times,
    "titles": _titles,
}
"""What the template calls to write numbers and lists."""
