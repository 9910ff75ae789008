"""The run's configuration: one typed model a section, with every default the FLARE23 recipe's.

`config/config.yaml` is generated from these models (`python -m panorgan.config.settings`), so a
field's description here is the documentation that a user reads there.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from panorgan.config.reading import EXPANDED, NOT_EXPANDED, faults, read_yaml
from panorgan.config.registry import (
    ARMS,
    ATTENTION_UNET,
    CASES,
    CHALLENGE,
    CROPS,
    ENGINES,
    EXPORTS,
    FILLED,
    ITERATED,
    MARGINAL,
    NEAREST,
    NETWORKS,
    NONE,
    NONZERO,
    ORDERS,
    PROFILES,
    REFERENCE,
    ROUNDS,
    SMALL_UNET,
    STAGE1,
    STAGE2,
    TEACHER,
    VARIANTS,
)
from panorgan.problems import Problem, Problems


def _ascending(numbers: list[float]) -> list[float]:
    if numbers[0] > numbers[1]:
        raise ValueError(f"{numbers} runs downwards; write the smaller number first")
    return numbers


def _range(**bounds: float) -> Any:
    """Two numbers within bounds, the smaller one first."""
    numbers = list[Annotated[float, Field(**bounds)]]
    return Annotated[numbers, Field(min_length=2, max_length=2), AfterValidator(_ascending)]


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size} is even; kernel sizes must be odd")
    return size


def _path(path: str) -> str:
    if not path:
        raise ValueError("is empty; write a path")
    if bad := {*EXPANDED, "\0"} & {*path}:
        raise ValueError(f"{path!r} has {min(bad)!r} in it; {NOT_EXPANDED}")
    return path


def _name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]{,99}", name):
        cure = "use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        raise ValueError(f"{name!r} is no name of a run; {cure}")
    return name


def _each_once(named: list[Any]) -> list[Any]:
    if len({*named}) < len(named):
        raise ValueError(f"names one twice: {named}; remove it")
    return named


# Upper bounds are far beyond what any recipe can mean: they are for slips of the keyboard.
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Samples = Annotated[int, Field(ge=1, le=1_000_000)]
Few = Annotated[int, Field(ge=1, le=100)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_each_once)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(ge=0.1, le=50)]
Spacing = Annotated[list[Millimetres], Field(min_length=2, max_length=3)]
Axes = Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=3)]
Kernel = Annotated[
    list[Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]],
    Field(min_length=2, max_length=3),
]
Stages = Field(min_length=3, max_length=16)
Range, NotNegativeRange, Factors = _range(), _range(ge=0), _range(gt=0)
Name = Annotated[str, AfterValidator(_name)]
PathText = Annotated[str, AfterValidator(_path)]
MOST_VOXELS = 2**30
"""Of a batch: a training holds some hundreds of bytes for each."""


class Section(BaseModel):
    """A section of the config: unknown keys are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Shards(Section):
    """Into how many jobs the cases of each per-case stage are divided."""

    labelled: Count = Field(36, description="training cases with a label")
    unlabelled: Count = Field(28, description="training cases without one")
    validation: Count = Field(4, description="validation cases")
    test: Count = Field(4, description="test cases")


class Manifest(Section):
    """What is known of each case and class."""

    min_ml: NotNegative = Field(
        0.0, description="a class below this volume in a label does not count as annotated"
    )
    speck_ml: NotNegative = Field(
        0.05, description="an annotated class below this volume is listed as a suspect"
    )
    max_repair_mm: NotNegative = Field(
        0.5,
        description="a sheared header is mended, in a copy, if that moves no corner further; 0: "
        "never",
    )


class Selection(Section):
    """Which cases train the teacher."""

    min_tumour_ml: NotNegative = Field(0.0, description="cases with less tumour are left out")
    exclude: list[str] = Field([], description="names of cases that are left out")
    negatives: bool = Field(False, description="tumour-free cases train the teacher too")


class PseudoLabels(Section):
    """Where the labels come from that nobody drew."""

    organs: PathText = Field(
        CASES,
        description="cases: the case table's column `organs`; marginal: a student of this run that "
        "learns organs from the partial labels; none: no pseudo-labels, what is unknown is "
        "learnt as background; else the folder of a model",
    )

    @property
    def predicted(self) -> bool:
        """Whether a network makes those of the organs."""
        return self.organs not in (CASES, NONE)


class TumourGate(Section):
    """Which pieces of tumour pseudo-labels are trusted."""

    min_ml: NotNegative = Field(0.1, description="smaller pieces are removed")
    hu: Range = Field([-50.0, 250.0], description="pieces with a mean outside are removed")
    max_distance_mm: NotNegative = Field(
        50.0, description="pieces further from every organ are ignored"
    )
    min_mean_probability: Probability = Field(0.7, description="pieces below are ignored")
    min_max_probability: Probability = Field(0.9, description="pieces below are ignored")

    @field_validator("hu")
    @classmethod
    def _holds_something(cls, hu: list[float]) -> list[float]:
        if hu[0] == hu[1]:
            raise ValueError(f"{hu} would remove every piece; write two different numbers")
        return hu


class OrganGate(Section):
    """Which pieces of organ pseudo-labels are trusted; outliers are judged among all cases."""

    min_share: Probability = Field(
        0.1,
        description="pieces beside an organ's largest are removed below this share of it, and "
        "ignored above",
    )
    max_volume_deviation: NotNegative = Field(
        5.0, description="robust standard deviations of log volume; beyond, the organ is ignored"
    )
    max_position_deviation: NotNegative = Field(
        5.0, description="the same of its place among the other organs"
    )
    max_doubtful: Probability = Field(
        0.5, description="a case with a larger share of its organs ignored is not learnt from"
    )


class Gate(Section):
    """What of the pseudo-labels students of the variant `gated` learn from."""

    tumour: TumourGate = Field(TumourGate(), description="")
    organs: OrganGate = Field(OrganGate(), description="")
    quantile: Annotated[float, Field(gt=0, lt=0.5)] | None = Field(
        None,
        description="thresholds of tumours are set where this share of the annotated tumours, "
        "found by teachers that did not train on their case, would be lost; null: those above",
    )
    max_instability: NotNegative = Field(
        1.0, description="cases whose pseudo-labels change more between rounds are not learnt from"
    )


class Fusion(Section):
    """Who wins where a pseudo-tumour meets an annotated organ."""

    order: Literal[*ORDERS] = Field(
        REFERENCE,
        description="; ".join(f"{name}: {order.description}" for name, order in ORDERS.items()),
    )


class Network(Section):
    """Topology; the lists have one entry a stage, from the full resolution down."""

    name: Literal[*NETWORKS] = Field(description="class of the network")
    features: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Stages] = Field(
        description="channels of each stage"
    )
    kernel_sizes: Annotated[list[Kernel], Stages] = Field(
        description="of each stage's convolutions"
    )
    strides: Annotated[list[Axes], Stages] = Field(description="of each stage's first convolution")
    convs_per_stage: Few = Field(2, description="convolutions in a stage")

    @field_validator("strides")
    @classmethod
    def _first_stage_keeps_the_size(cls, strides: list[list[int]]) -> list[list[int]]:
        if any(stride != 1 for stride in strides[0]):
            raise ValueError(f"the first stage keeps the size, so not {strides[0]}; write only 1")
        return strides

    @model_validator(mode="after")
    def _one_entry_a_stage(self) -> "Network":
        counts = len(self.features), len(self.kernel_sizes), len(self.strides)
        if len({*counts}) > 1:
            said = "features, kernel_sizes and strides differ in length ({}, {}, {})"
            raise ValueError(f"{said.format(*counts)}; write one entry a stage in each")
        return self


class Optimizer(Section):
    """How the weights are updated."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum")
    learning_rate: Annotated[float, Field(gt=0)] = Field(0.01, description="at the start")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.99, description="of sgd")
    weight_decay: NotNegative = Field(3e-5, description="weight decay")
    poly_power: NotNegative = Field(0.9, description="rate falls with (1 - epoch/epochs)^power")
    warmup_iterations: Annotated[int, Field(ge=0)] = Field(
        0, description="over these first iterations the rate rises linearly"
    )
    gradient_clip: Annotated[float, Field(gt=0)] = Field(12.0, description="largest gradient norm")


class Augmentation(Section):
    """Random changes of the training patches: p is the probability of each."""

    p_rotation: Probability = Field(0.2, description="rotation")
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = Field(
        180.0, description="largest angle, in plane"
    )
    p_scaling: Probability = Field(0.2, description="scaling, one factor for all axes")
    scaling: Factors = Field([0.7, 1.4], description="range of the factor")
    p_elastic: Probability = Field(0.2, description="elastic deformation")
    elastic_alpha: NotNegativeRange = Field(
        [0.0, 200.0], description="its magnitude (batchgenerators' unit)"
    )
    elastic_sigma: Factors = Field([9.0, 13.0], description="its smoothness in voxels")
    p_noise: Probability = Field(0.1, description="Gaussian noise")
    noise_variance: NotNegativeRange = Field(
        [0.0, 0.1], description="range of its sd (batchgenerators calls it variance)"
    )
    p_blur: Probability = Field(0.2, description="Gaussian blur, half of the channels")
    blur_sigma: Factors = Field([0.5, 1.0], description="range of its width in voxels")
    p_brightness: Probability = Field(0.15, description="multiplied brightness")
    brightness: Factors = Field([0.75, 1.25], description="range of the factor")
    p_contrast: Probability = Field(0.15, description="contrast, range kept")
    contrast: Factors = Field([0.75, 1.25], description="range of the factor")
    p_low_resolution: Probability = Field(0.25, description="simulated low resolution")
    low_resolution: _range(gt=0, le=1) = Field([0.5, 1.0], description="range of the zoom")
    p_gamma: Probability = Field(0.3, description="gamma, statistics kept")
    p_gamma_inverted: Probability = Field(0.1, description="gamma on the inverted image")
    gamma: Factors = Field([0.7, 1.5], description="range of the exponent")
    mirror_axes: Annotated[list[Literal[0, 1, 2]], AfterValidator(_each_once)] = Field(
        [], description="patch axes that are mirrored; never left-right for organs with sides"
    )


class Training(Section):
    """The schedule."""

    epochs: Positive = Field(1000, description="number of epochs")
    iterations: Positive = Field(250, description="training batches an epoch")
    validation_iterations: Annotated[int, Field(ge=0)] = Field(
        50, description="validation batches an epoch, for the learning curve only"
    )
    batch_dice: bool = Field(True, description="Dice over the batch, else over each sample")
    oversample_foreground: Probability = Field(
        0.33, description="share of a batch that is centred on foreground"
    )
    optimizer: Optimizer = Field(Optimizer(), description="")
    augmentation: Augmentation = Field(Augmentation(), description="")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp16 on a GPU, else fp32"
    )
    augment_on: Literal["auto", "workers", "device"] = Field(
        "auto",
        description="where patches are augmented: by the processes that load them, or in batches "
        "where the network is; auto: workers, until a GPU is shown to be faster with the other",
    )
    compute: Literal["auto", "plain", "search"] = Field(
        "auto",
        description="how a GPU computes steps; search: the fastest of plainly, in channels-last "
        "memory, compiled, or both, tried when a training of over an hour begins; auto: plain, "
        "until a GPU is shown to be faster with the other",
    )
    checkpoint_every_s: NotNegative = Field(
        300.0, description="a checkpoint at an epoch's end if this many seconds have passed"
    )
    threads: Threads = Field(8, description="CPU threads of the training job")
    workers: Processes = Field(
        6, description="processes that load and augment; 0: none, and bitwise the same each time"
    )
    tensorboard: bool = Field(
        False, description="also write events for TensorBoard, beside the checkpoints"
    )


class Recipe(Section):
    """A network and its training."""

    plan: PathText | None = Field(
        None, description="a plans.json to be used as it is; empty: made from the data"
    )
    crop: Literal[*CROPS] = Field(
        NONZERO,
        description="how images are cropped in training and prediction; "
        + "; ".join(f"{name}: {crop.description}" for name, crop in CROPS.items()),
    )
    spacing_mm: Spacing
    patch_size: Axes
    batch_size: Count
    network: Network
    training: Training

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        dimension, network = len(self.patch_size), self.network
        if len(self.spacing_mm) != dimension:
            raise ValueError(f"spacing_mm needs {dimension} values, as patch_size has")
        for key in ("kernel_sizes", "strides"):
            if any(len(entry) != dimension for entry in getattr(network, key)):
                cure = f"as patch_size has: {self.patch_size}"
                raise ValueError(f"network.{key}: each entry needs {dimension} values, {cure}")
        strides = [math.prod(axis) for axis in zip(*network.strides, strict=True)]
        cure = "enlarge patch_size, or lower network.strides"
        for axis, (size, stride) in enumerate(zip(self.patch_size, strides, strict=True)):
            if size < stride:
                cause = f"patch_size {self.patch_size}: the strides of axis {axis} need {stride}"
                raise ValueError(f"{cause} voxels or more; {cure}")
        if self.patch_size == strides:
            cause = f"patch_size {self.patch_size} is down to one voxel after the strides"
            raise ValueError(f"{cause}; {cure}")
        if (voxels := self.batch_size * math.prod(self.patch_size)) > MOST_VOXELS:
            cure = "lower batch_size or patch_size"
            raise ValueError(f"a batch has {voxels:,} voxels, more than any GPU holds; {cure}")
        for axis in self.training.augmentation.mirror_axes:
            if axis >= dimension:
                raise ValueError(f"mirror_axes: the patch has no axis {axis}; leave it out")
        return self


class Teacher(Recipe):
    """The 2D Attention nnU-Net that finds tumours; spacing and patch are (y, x)."""

    seed: Seed = Field(0, description="seed of the weights and of the training")
    spacing_mm: Spacing = Field([0.8164, 0.8164], description="target spacing")
    patch_size: Axes = Field([512, 512], description="in voxels of the target spacing")
    batch_size: Count = Field(4, description="patches in a batch")
    network: Network = Field(
        Network(
            name=ATTENTION_UNET,
            features=[32, 64, 128, 256, 480, 480, 480, 480],
            kernel_sizes=[[3, 3]] * 8,
            strides=[[1, 1]] + [[2, 2]] * 7,
        ),
        description="",
    )
    training: Training = Field(
        Training(
            optimizer=Optimizer(learning_rate=5e-4), augmentation=Augmentation(mirror_axes=[0, 1])
        ),
        description="",
    )


class Student(Recipe):
    """The small 3D nnU-Net that is the result; spacing and patch are (z, y, x)."""

    seeds: Seeds = Field([0], description="one student is trained for each")
    variants: Annotated[
        list[Literal[*VARIANTS]], Field(min_length=1), AfterValidator(_each_once)
    ] = Field(
        [STAGE2],
        description="labels to train on: "
        + ", ".join(f"{name} ({variant.description})" for name, variant in VARIANTS.items()),
    )
    spacing_mm: Spacing = Field([4.0, 1.2, 1.2], description="target spacing")
    patch_size: Axes = Field([32, 128, 192], description="in voxels of the target spacing")
    batch_size: Count = Field(2, description="patches in a batch")
    network: Network = Field(
        Network(
            name=SMALL_UNET,
            features=[16, 32, 64, 128, 256],
            kernel_sizes=[[1, 3, 3]] + [[3, 3, 3]] * 4,
            strides=[[1, 1, 1], [1, 2, 2]] + [[2, 2, 2]] * 3,
        ),
        description="",
    )
    training: Training = Field(
        Training(epochs=1500, validation_iterations=1, batch_dice=False), description=""
    )

    @model_validator(mode="after")
    def _keeps_sides(self) -> "Student":
        if len(self.patch_size) - 1 in self.training.augmentation.mirror_axes:
            axis = len(self.patch_size) - 1
            raise ValueError(
                f"mirror_axes: axis {axis} swaps left and right, and the student tells them apart"
            )
        return self


class Prediction(Section):
    """How trained networks are applied."""

    tile_step: Annotated[float, Field(ge=0.05, le=1)] = Field(
        0.5, description="step of the sliding window in patch sizes"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="as in training")
    engine: Literal[*ENGINES] = Field(
        "auto",
        description="what computes networks: auto is torch on a GPU, else openvino",
    )
    export: Literal[*EXPORTS] = Field(
        NEAREST,
        description="to the image's grid: smooth interpolates scores, as nnU-Net does; nearest "
        "takes labels, as the method's fastest mode does",
    )
    threads: Threads = Field(4, description="CPU threads of a prediction job")


class Evaluation(Section):
    """How predictions are scored."""

    profile: Literal[*PROFILES] = Field(CHALLENGE, description="rules of DSC and NSD")
    samples: Samples = Field(2000, description="bootstrap samples of cases, for the intervals")
    lesion_overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="a lesion counts as found, or a predicted one as true, if at least this share "
        "of its voxels is tumour on the other side",
    )
    lesion_sizes_mm: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        [10.0, 20.0, 50.0], description="bounds of the groups of lesions by diameter, ascending"
    )

    @field_validator("lesion_sizes_mm")
    @classmethod
    def _ascending(cls, sizes: list[float]) -> list[float]:
        if sorted(set(sizes)) != sizes:
            raise ValueError(f"{sizes} does not ascend; write the smaller number first")
        return sizes


class Ablation(Section):
    """What `snakemake ablation` compares: students that differ in their labels only."""

    arms: Annotated[list[Literal[*ARMS]], Field(min_length=1), AfterValidator(_each_once)] = Field(
        list(ARMS), description="variants of the student; rounds: stage2 after several rounds"
    )
    seeds: Seeds = Field([0, 1, 2], description="of each arm")
    rounds: Annotated[int, Field(ge=2, le=100)] = Field(2, description="of the arm `rounds`")
    samples: Samples = Field(2000, description="bootstrap samples of cases and seeds")


class Phantom(Section):
    """The demo's synthetic CTs; with this section the run writes them itself."""

    seed: Seed = Field(0, description="seed of anatomy, noise and errors")
    shape: Annotated[list[Positive], Field(min_length=3, max_length=3)] = Field(
        [28, 56, 80], description="voxels (z, y, x)"
    )
    spacing_mm: Annotated[list[Millimetres], Field(min_length=3, max_length=3)] = Field(
        [6.0, 4.0, 4.0], description="(z, y, x)"
    )


class Config(Section):
    """Everything that can be set for a run."""

    run: Name = Field("flare23", description="results go to results/RUN")
    cases: PathText = Field(
        "data/cases.tsv", description="the case table (panorgan init writes one)"
    )
    labels: PathText = Field("config/labels.yaml", description="the class table")
    sources: PathText = Field("config/sources.yaml", description="what each data set annotates")
    corrections: PathText | None = Field(
        None, description="a table of your corrections, which win: see config/README.md"
    )
    bad_cases: Literal["stop", "exclude"] = Field(
        "stop", description="what happens when a case cannot be used"
    )
    scratch: PathText | None = Field(
        None,
        description="a disk of each machine's own, such as $TMPDIR: trainings copy their "
        "preprocessed data there",
    )
    shards: Shards = Field(Shards(), description="")
    manifest: Manifest = Field(Manifest(), description="")
    selection: Selection = Field(Selection(), description="")
    teacher: Teacher = Field(Teacher(), description="")
    pseudo_labels: PseudoLabels = Field(PseudoLabels(), description="")
    gate: Gate = Field(Gate(), description="")
    fusion: Fusion = Field(Fusion(), description="")
    student: Student = Field(Student(), description="")
    rounds: Few = Field(
        1,
        description=f"from the second on the students of {' and '.join(ITERATED)} make the "
        "pseudo-labels that the next ones learn",
    )
    folds: Few = Field(
        5,
        description="no case is labelled again by a network that trained on it: so many are "
        "trained for that, each without a part of the cases; 1: one network labels all",
    )
    prediction: Prediction = Field(Prediction(), description="")
    evaluation: Evaluation = Field(Evaluation(), description="")
    ablation: Ablation = Field(Ablation(), description="")
    phantom: Phantom | None = Field(None, description="")

    @model_validator(mode="after")
    def _quantiles_are_cross_fitted(self) -> "Config":
        if self.gate.quantile is not None and self.folds < 2:
            raise ValueError("gate.quantile needs folds of 2 or more")
        return self


@dataclass(frozen=True)
class Member:
    """A network among those that differ in seed and cases only, as paths name it.

    `fold` is the part of the cases, from 1 to `folds`, that it does not train on; 0 is none.
    """

    seed: int
    fold: int = 0
    folds: int = 1

    def __str__(self) -> str:
        return f"{self.seed}-fold-{self.fold}of{self.folds}" if self.fold else str(self.seed)

    @classmethod
    def parse(cls, text: str) -> "Member":
        """The inverse of `str`: of the wildcard ``seed``."""
        seed, _, fold = text.partition("-fold-")
        return cls(int(seed), *map(int, fold.split("of"))) if fold else cls(int(seed))


MEMBER = r"-?\d+(-fold-\d+of\d+)?"
"""Regular expression of a member's name."""


def members(seed: int, folds: int) -> list[Member]:
    """Networks of which each case has one that did not train on it; one alone if `folds` is 1."""
    if folds == 1:
        return [Member(seed)]
    return [Member(seed, fold, folds) for fold in range(1, folds + 1)]


@dataclass(frozen=True)
class Arm:
    """A student of the run: its round, the labels it learns from, and its member's name."""

    round: int
    variant: str
    seed: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Variant, seed and round, as the methods of a `Layout` take them."""
        return self.variant, self.seed, self.round

    @property
    def labels(self) -> str:
        """Which fused labels it learns from."""
        return labels_of(self.variant)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.variant}{self.round_text}, seed {self.seed}"

    @property
    def round_text(self) -> str:
        """For people; nothing for the first round."""
        return f", round {self.round}" if self.round > 1 else ""


def students(config: Config) -> list[Arm]:
    """The students that are a run's result, those of the first round first."""
    return [
        Arm(number, variant, str(seed))
        for number in range(1, config.rounds + 1)
        for variant in config.student.variants
        if number == 1 or variant in ITERATED
        for seed in config.student.seeds
    ]


def main_arm(arms: Iterable[Arm]) -> Arm:
    """The last round's of stage 2, else of the gate, else the first; of several seeds the first."""

    def rank(arm: Arm) -> tuple[int, bool, bool]:
        return arm.round, *(arm.variant == variant for variant in ITERATED)

    return max(arms, key=rank)


def relabellers(config: Config) -> list[Arm]:
    """The students that make the pseudo-labels of a run's later rounds."""
    return [
        Arm(number, variant, str(member))
        for number in range(1, config.rounds)
        for variant in config.student.variants
        if variant in ITERATED
        for member in members(config.student.seeds[0], config.folds)
    ]


def trained_students(config: Config) -> list[Arm]:
    """Every student that a run trains, those that only make pseudo-labels too."""
    organs = []
    if config.pseudo_labels.organs == MARGINAL:
        organs = [Arm(1, MARGINAL, str(config.student.seeds[0]))]
    return list(dict.fromkeys([*students(config), *organs, *relabellers(config)]))


def teachers(config: Config) -> list[Member]:
    """Every teacher that a run trains: the one, and those that judge the gate's thresholds."""
    one = Member(config.teacher.seed)
    return [one, *members(one.seed, config.folds)] if config.gate.quantile else [one]


def fused_labels(config: Config) -> list[tuple[int, str]]:
    """Round and name of all labels that students learn, and of the stage 1 of the first round's
    stage 2."""
    found = {(arm.round, arm.labels) for arm in trained_students(config)}
    return sorted(found | {(1, STAGE1) for one in found if one == (1, STAGE2)})


def learns_filled(config: Config) -> bool:
    """Whether a student learns labels of a stage 2."""
    return any(labels in FILLED for _, labels in fused_labels(config))


def origins(config: Config) -> list[tuple[str, int]]:
    """Maker and round of all pseudo-labels that are judged for a result of the run."""
    later = {(arm.variant, arm.round) for arm in students(config) if arm.round > 1}
    return [(TEACHER, 1), *sorted(later, key=lambda origin: (origin[1], origin[0]))]


def ablation_arms(config: Config) -> dict[str, list[Arm]]:
    """The students of each arm of the ablation, one a seed."""

    def of(arm: str) -> tuple[int, str]:
        return (config.ablation.rounds, STAGE2) if arm == ROUNDS else (1, arm)

    return {
        arm: [Arm(*of(arm), str(seed)) for seed in config.ablation.seeds]
        for arm in config.ablation.arms
    }


def labels_of(variant: str) -> str:
    """Which fused labels a variant of the student learns from."""
    return VARIANTS[variant].labels


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a config file as Snakemake does: JSON, else YAML.

    Raises
    ------
    Problems
        If it cannot be read or is neither, has a key twice, or has no keys at its top.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise Problems.one("has no keys at its top", "see config/config.yaml", file=path)
    return content


def merge(base: Any, changes: Mapping[str, Any]) -> Any:
    """Lay a config over another as Snakemake does: sections key by key, all else as a whole."""
    for key, value in changes.items():
        # An empty section changes nothing, not even a value that is none.
        base = base if isinstance(base, Mapping) else {}
        below = base.get(key, {})
        base = {**base, key: merge(below, value) if isinstance(value, Mapping) else value}
    return base


def load_config(raw: Mapping[str, Any]) -> Config:
    """Check a merged configuration.

    Raises
    ------
    Problems
        One problem a wrong key or value, each with the key's path and the nearest right name.
    """
    try:
        return Config.model_validate(dict(raw))
    except ValidationError as error:
        found = [Problem("config", key or "config", *rest) for key, *rest in faults(error, Config)]
        raise Problems(found) from None


def default_yaml() -> str:
    """The text of `config/config.yaml`: every key, its default and what it means."""
    head = (
        "# The FLARE23 recipe: every key, its default and what it means.\n"
        "# Made by `make docs` from src/panorgan/config/settings.py; set other values in a file\n"
        "# of your own and name it with --configfile, as config/demo.yaml does.\n\n"
    )
    return head + "\n".join(_section_lines(Config())) + "\n"


def _section_lines(section: Section, indent: str = "") -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            yield f"\n{indent}# {(type(value).__doc__ or '').splitlines()[0]}"
            yield f"{indent}{key}:"
            yield from _section_lines(value, indent + "  ")
        elif key == "phantom":
            yield "\n# Synthetic CTs instead of real ones: see config/demo.yaml."
            yield "phantom: null"
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
            text = text.removesuffix("\n").removesuffix("\n...")
            note = f"  # {field.description}" if field.description else ""
            yield f"{indent}{key}: {text}{note}"


if __name__ == "__main__":
    Path("config/config.yaml").write_text(default_yaml())
