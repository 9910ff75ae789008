"""What a config chooses by name, each with its texts and what code needs to know of it.

Variants of a student's labels, orders of fusion, scoring profiles, networks, crops. Choices of the
config and of the command line, their help, patterns of paths, captions, report and methods text are
made from these, so a new one is added here alone, with whatever implements it. None can be made
without its texts. Imports nothing heavy. ``[@marginal]`` in a text cites a work of
`report.methods_text.REFERENCES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum


@dataclass(frozen=True)
class Choice:
    """Something that is chosen by its name.

    Raises
    ------
    ValueError
        If a text is empty.
    """

    name: str

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) == "":
                raise ValueError(f"{type(self).__name__} '{self.name}' has no {field.name}")


# Variants of the student's labels


@dataclass(frozen=True)
class AblationArm(Choice):
    """What the ablation compares: students that differ in their labels only.

    Attributes
    ----------
    contents
        What they learn from, for the table of arms.
    instead
        How a sentence about the arm begins; None: it is the one that the others are compared with.
    lowers_organs
        Whether organs have to be worse than in that one, if its organ pseudo-labels teach organs.
    """

    contents: str
    instead: str | None
    lowers_organs: bool = False


@dataclass(frozen=True, kw_only=True)
class Variant(AblationArm):
    """Labels that a student learns from.

    Attributes
    ----------
    title, later_title
        Heading of its fused labels in the first round and, if that differs, in later ones.
    description
        For the config.
    methods
        What the student learnt, for the methods text; ``{stage2}`` is what one of stage 2 learnt.
    labels
        Which fused labels it learns.
    filled
        Whether there is a stage 2 of fusion: organ pseudo-labels fill what stage 1 left.
    marginal_loss
        Whether unknown classes count as background in the loss, instead of being learnt as it.
    iterated
        Whether it goes on in later rounds.
    gated, shuffled
        Whether its pseudo-labels obey the gate, and whether its organ pseudo-labels are shuffled.
    """

    title: str
    later_title: str | None = None
    description: str
    methods: str
    labels: str
    filled: bool = True
    marginal_loss: bool = False
    iterated: bool = False
    gated: bool = False
    shuffled: bool = False


PARTIAL, MARGINAL, STAGE1, STAGE2 = "partial", "marginal", "stage1", "stage2"
GATED, NOISE = "gated", "noise"
"""Names of variants. `MARGINAL` is also what makes `pseudo_labels.organs` a student's."""
CASES, NONE = "cases", "none"
"""Its other words: the case table names organ pseudo-labels; there are to be none."""

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            PARTIAL,
            "partial labels as they are: what nobody annotated is background",
            "From partial labels as they are",
            title="Partial labels",
            description="the annotations alone",
            methods="the partial labels of the labelled cases alone, all else taken for background",
            labels=PARTIAL,
            filled=False,
        ),
        Variant(
            MARGINAL,
            "partial labels with the marginal loss: what nobody annotated is not background",
            "From partial labels with the marginal loss",
            title="Partial labels, marginal loss",
            description="partial, but what is unknown in a case is not learnt as background",
            methods="the partial labels of the labelled cases alone, with the marginal loss",
            labels=PARTIAL,
            filled=False,
            marginal_loss=True,
        ),
        Variant(
            STAGE1,
            "partial labels + tumour pseudo-labels",
            "Without stage 2",
            lowers_organs=True,
            title="Stage 1: partial labels + tumour pseudo-labels",
            description="partial + tumour",
            methods="the partial labels and the tumour pseudo-labels",
            labels=STAGE1,
            filled=False,
        ),
        Variant(
            STAGE2,
            "partial labels + tumour + organ pseudo-labels: the method",
            None,
            title="Stage 2: + organ pseudo-labels",
            later_title="Stage 2: partial labels + pseudo-labels",
            description="also organs",
            methods="the partial labels and all pseudo-labels",
            labels=STAGE2,
            iterated=True,
        ),
        Variant(
            GATED,
            "stage 2 without the pieces that the gate does not trust",
            "With the gate",
            title="Gated: without what the gate does not trust",
            description="stage2 without what the gate does not trust",
            methods="{stage2} without the pseudo-labels that the gate did not trust",
            labels=GATED,
            iterated=True,
            gated=True,
        ),
        Variant(
            NOISE,
            "stage 2 with shuffled organ pseudo-labels",
            "With noise instead of organ pseudo-labels",
            lowers_organs=True,
            title="Noise: shuffled organ pseudo-labels",
            description="stage2 with shuffled organs",
            methods="{stage2} with shuffled organ pseudo-labels, as a control",
            labels=NOISE,
            shuffled=True,
        ),
    )
}
FUSED = tuple(dict.fromkeys(variant.labels for variant in VARIANTS.values()))
"""Names of all fused labels."""
ITERATED = tuple(name for name, variant in VARIANTS.items() if variant.iterated)
"""Variants that go on in later rounds, the one that is preferred as a run's result first."""
FILLED = tuple(name for name in FUSED if VARIANTS[name].filled)
"""Names of the labels of stage 2."""
OWN_STAGE1 = "-stage1"
"""What follows the name of labels in that of the stage 1 from which they alone are made."""
FIRST_STAGES = (
    *(name for name in FUSED if name not in FILLED),
    *(name + OWN_STAGE1 for name in ITERATED),
)
"""Names of the labels of stage 1."""
TEACHER = "teacher"
"""Who makes the pseudo-labels of the first round."""
ORIGINS = (TEACHER, *ITERATED)
"""Who makes pseudo-labels: the teacher, in later rounds the students of these variants."""


def first_stage(labels: str, round: int) -> str:
    """Name of the stage 1 that labels are made from, which of some are the labels themselves.

    In the first round the teacher's tumours are the same for all labels that trust them.
    """
    if labels not in FILLED:
        return labels
    return STAGE1 if round == 1 and not VARIANTS[labels].gated else labels + OWN_STAGE1


ROUNDS = "rounds"
"""The arm of an ablation that is stage 2 after several rounds."""
ARMS: dict[str, AblationArm] = {
    **{name: VARIANTS[name] for name in VARIANTS if name != NOISE},
    ROUNDS: AblationArm(
        ROUNDS, "stage 2, its pseudo-labels made again by the student", "With a further round"
    ),
    NOISE: VARIANTS[NOISE],
}
"""Arms of the ablation in the order in which they are shown."""


# Orders of fusion


class Source(IntEnum):
    """Where a fused voxel comes from: the values of a source map."""

    BACKGROUND = 0
    GROUND_TRUTH = 1
    TUMOUR_PSEUDO = 2
    ORGAN_PSEUDO = 3
    IGNORED = 4


@dataclass(frozen=True)
class Order(Choice):
    """Who wins where the inputs of fusion claim different things: the rules are in `fusion`.

    Attributes
    ----------
    description
        Who wins where a pseudo-tumour meets an annotated organ, for the config.
    help
        The same for the command line.
    methods
        The same in past tense, for the methods text.
    priority
        Whose claim wins a voxel, the strongest first. Organ pseudo-labels are last.
    inside_organs
        Whether a piece of a tumour pseudo-label counts only where it lies in or touches an organ.
    """

    description: str
    help: str
    methods: str
    priority: tuple[Source, ...]
    inside_organs: bool = False

    def __post_init__(self):
        super().__post_init__()
        first = {Source.GROUND_TRUTH, Source.TUMOUR_PSEUDO}
        if {*self.priority[:2]} != first or self.priority[2:] != (Source.ORGAN_PSEUDO,):
            raise ValueError(f"Order '{self.name}': organ pseudo-labels must come last of three")


_TUMOUR_FIRST = (Source.TUMOUR_PSEUDO, Source.GROUND_TRUTH, Source.ORGAN_PSEUDO)
_ANNOTATED_FIRST = (Source.GROUND_TRUTH, Source.TUMOUR_PSEUDO, Source.ORGAN_PSEUDO)

REFERENCE = "reference"
"""The published order."""

ORDERS = {
    order.name: order
    for order in (
        Order(
            REFERENCE,
            "the pseudo-tumour",
            "the tumour, everywhere: the published method",
            "a tumour pseudo-label took precedence over the annotation",
            _TUMOUR_FIRST,
        ),
        Order(
            "annotated-first",
            "the organ",
            "the organ; the tumour fills the rest, and wins over organ pseudo-labels",
            "the annotation took precedence over a tumour pseudo-label",
            _ANNOTATED_FIRST,
        ),
        Order(
            "inside-organs",
            "the pseudo-tumour, but only where it lies in or touches an organ",
            "the tumour, but only pieces of it that overlap or touch an organ: one annotated in "
            "the partial label, or an unknown one in the organ pseudo-label. Other pieces are left "
            "out, and reported. Needs --partial or --organs.",
            "a tumour pseudo-label took precedence over the annotation where a connected piece of "
            "it overlapped or touched an organ (other pieces were dropped)",
            _TUMOUR_FIRST,
            inside_organs=True,
        ),
    )
}


# Scoring profiles


@dataclass(frozen=True)
class Profile(Choice):
    """One version of the challenge's rules of DSC and NSD, which `metrics` follows.

    Attributes
    ----------
    title
        Which rules of the challenge, for the command line.
    description
        What they do, for the report.
    methods
        How scores were computed, for the methods text.
    drops_last_slice
        Whether the last slice of the classes with `crop_slices` is lost.
    nsd_floor
        The NSD is 0 where the DSC is below.
    """

    title: str
    description: str
    methods: str
    drops_last_slice: bool
    nsd_floor: float


CHALLENGE = "flare23-2023"
"""The profile during the challenge."""

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            CHALLENGE,
            "in 2023",
            "the challenge's script during FLARE23: NSD counts 0 where DSC is below 0.1, and the "
            "last slice of the classes with `crop_slices` is lost",
            "by the rules of the FLARE 2023 challenge as they were during it",
            drops_last_slice=True,
            nsd_floor=0.1,
        ),
        Profile(  # official since 2024-03-18
            "flare23-2024",
            "since 2024",
            "the same script since March 2024: NSD counts 0 where DSC is below 0.2",
            "by the rules of the FLARE 2023 challenge as published since 2024",
            drops_last_slice=True,
            nsd_floor=0.2,
        ),
        Profile(
            "corrected",
            "without their quirks",
            "without these quirks: all slices count, and NSD is what was measured",
            "as in the FLARE 2023 challenge, but with all slices that the reference annotates and "
            "without a lower bound of the DSC",
            drops_last_slice=False,
            nsd_floor=0.0,
        ),
    )
}


# Networks

DECODER_STAGES = {
    "plain": "plain",
    "non_local": "with a non-local block [@nonlocal] and channel attention",
    "gated": "whose skip connections pass two attention gates, with channel attention",
    "ungated": "with channel attention alone",
}
"""Kinds of decoder stages, in words of the methods text."""


@dataclass(frozen=True)
class Network(Choice):
    """A network that a recipe may name.

    Attributes
    ----------
    path
        Its class as plans name it, importable with torch only.
    methods
        What it is, after its dimension, for the methods text.
    decoder
        Kinds of its decoder's stages from the deepest up; the last one repeats.
    """

    path: str
    methods: str
    decoder: tuple[str, ...]

    def __post_init__(self):
        super().__post_init__()
        if unknown := [kind for kind in self.decoder if kind not in DECODER_STAGES]:
            raise ValueError(f"Network '{self.name}': no decoder stage is called {unknown[0]}")

    def decoder_kinds(self, count: int) -> tuple[str, ...]:
        """The kinds of `count` decoder stages, from the deepest up.

        So a shallower network lacks the last kinds, and a deeper one has more of the last.
        """
        return tuple(self.decoder[min(index, len(self.decoder) - 1)] for index in range(count))


ATTENTION_UNET, SMALL_UNET = "attention_unet", "small_unet"

NETWORKS = {
    network.name: network
    for network in (
        Network(
            ATTENTION_UNET,
            "panorgan.networks.AttentionUNet",
            "U-Net with nnU-Net's encoder [@nnunet] and a decoder with attention in the manner of "
            "CA-Net [@canet]",
            ("plain", "non_local", "gated", "gated", "gated", "ungated"),
        ),
        Network(
            SMALL_UNET,
            "panorgan.networks.SmallUNet",
            "U-Net in the manner of nnU-Net [@nnunet]",
            ("plain",),
        ),
    )
}

NETWORKS_BY_PATH = {network.path: network for network in NETWORKS.values()}
"""As plans name them."""


# Prediction


@dataclass(frozen=True)
class Export(Choice):
    """How labels come from a network's grid to an image's.

    Attributes
    ----------
    methods
        What it does, for the methods text.
    """

    methods: str


SMOOTH, NEAREST = "smooth", "nearest"

EXPORTS = {
    export.name: export
    for export in (
        Export(
            SMOOTH,
            "the scores of all classes were interpolated linearly (across slices that lie far "
            "apart they were those of the nearest one) before the class with the highest was "
            "chosen",
        ),
        Export(
            NEAREST,
            "the class with the highest score was chosen first, and labels were those of the "
            "nearest voxel",
        ),
    )
}

AUTO, OPENVINO, TORCH = "auto", "openvino", "torch"
ENGINES = (AUTO, OPENVINO, TORCH)
"""What may compute a trained network; auto: the faster one of those that are exact enough here."""


# How a network's images are cropped


@dataclass(frozen=True)
class Crop(Choice):
    """Which part of a CT a network sees; `nnunet.cropping` implements it.

    Attributes
    ----------
    description
        For the config.
    methods
        How a sentence about the voxels that the network saw goes on in the methods text, if it
        does.
    """

    description: str
    methods: str | None


NONZERO, BODY = "nonzero", "body"

CROPS = {
    crop.name: crop
    for crop in (
        Crop(NONZERO, "to what is not 0, as nnU-Net does, which is most CTs' whole", None),
        Crop(
            BODY,
            "to the patient, so that air around makes no difference",
            "of CTs cropped to the body",
        ),
    )
}


def pattern(names: Iterable[str]) -> str:
    """A regular expression of some names, for wildcards."""
    return "|".join(names)
