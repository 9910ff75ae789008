"""Synthetic abdominal CTs with known truth, for the demo and the tests.

A case is a patient: organs are ellipsoids and tubes given in mm, bent by smooth random fields, so
that the same patient can be drawn on any grid. Everything random derives from the seed and the
case, never from the order in which cases are written. Patient coordinates are RAS mm: x grows to
the patient's right, y forwards, z to the head; 0 is the middle of the field of view without the air
around the patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import scipy
from nibabel import orientations

from panorgan.cases.manifest import load_sources
from panorgan.cases.table import Case
from panorgan.config.labels import Labels, config_folder, load_labels
from panorgan.io.volumes import new_volume, write_image, write_label
from panorgan.problems import Problems

# ---------------------------------------------------------------------------------------------
# Cases


@dataclass(frozen=True)
class Group:
    """Cases of one source; the first `with_tumour` of them have tumours."""

    name: str
    source: str
    split: str
    cases: int
    with_tumour: int


@dataclass(frozen=True)
class Plan:
    """What is decided about a case before it is drawn: tumours or none, and how it is stored.

    With `air` the field of view is wider than the patient, as that of most real CTs.
    """

    group: Group
    tumour: bool
    air: bool
    axes: str
    tilted: bool


UNLABELLED = "phantom-unlabelled"
GROUPS = (
    Group("liver", "phantom-liver", "train", 7, 6),
    Group("kidneys", "phantom-kidneys", "train", 6, 6),
    Group("four", "phantom-four", "train", 4, 2),
    Group("organs", "phantom-organs", "train", 4, 2),
    Group("unlabelled", UNLABELLED, "train", 8, 5),
    Group("validation", "phantom-validation", "validation", 8, 6),
    Group("test", "phantom-validation", "test", 2, 1),
)
# How cases are stored, in turn: directions of the axes, and whether the grid is tilted.
POSES = (("LPS", False), ("RAS", False), ("LAS", False), ("LIP", False), ("LPS", True))
FOLDERS = {"train": "Tr", "validation": "Val", "test": "Ts"}


def plans() -> dict[str, Plan]:
    """The plan of every case of the phantom by the case's name."""
    members = [(group, index) for group in GROUPS for index in range(group.cases)]
    return {
        f"{group.name}_{index + 1}": Plan(
            group, index < group.with_tumour, index % 2 == 1, *POSES[turn % len(POSES)]
        )
        for turn, (group, index) in enumerate(members)
    }


def phantom_cases(folder: str | Path) -> list[Case]:
    """All cases of the phantom with their files below `folder`, as in `config/demo_cases.tsv`.

    Unlabelled cases have no label, and only training cases have organ pseudo-labels.
    """
    cases = []
    for name, plan in plans().items():
        group, suffix = plan.group, FOLDERS[plan.group.split]
        cases.append(
            Case(
                case=name,
                image=f"{folder}/images{suffix}/{name}_0000.nii.gz",
                label=""
                if group.source == UNLABELLED
                else f"{folder}/labels{suffix}/{name}.nii.gz",
                split=group.split,
                source=group.source,
                organs=f"{folder}/organsTr/{name}.nii.gz" if group.split == "train" else "",
            )
        )
    return cases


def case_files(case: Case) -> dict[str, Path]:
    """The files of a case, by what they hold: image, label, organs, truth.

    Only training cases have a truth of their own, in `truthTr` beside the folder of the images;
    the label of the others is the truth.
    """
    files = {key: Path(getattr(case, key)) for key in ("image", "label", "organs")}
    files = {key: path for key, path in files.items() if path != Path()}
    if case.split == "train":
        files["truth"] = files["image"].parents[1] / "truthTr" / f"{case.case}.nii.gz"
    return files


def write_case(
    case: Case,
    *,
    seed: int,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    labels: Labels | None = None,
) -> None:
    """Draw a case and write its files (`case_files`).

    Parameters
    ----------
    case : Case
        One of `phantom_cases`; its files may lie anywhere.
    seed : int
        Seed of the phantom.
    shape, spacing_mm : sequences of 3
        The nominal grid (z, y, x); each case's own differs by some percent.
    labels
        The class table, by whose values label maps are written; None: the one shipped.

    Raises
    ------
    Problems
        If the phantom has no case of that name, an organ has no voxel on such a grid, or the class
        table lacks one that is drawn.
    """
    if case.case not in plans():
        raise Problems.one("is no case of the phantom", "use config/demo_cases.tsv", case=case.case)
    plan = plans()[case.case]
    patient = draw_patient(case.case, seed=seed, shape=shape, spacing_mm=spacing_mm)
    volumes = {
        "image": patient.image,
        "label": partial_label(patient, plan.group),
        "organs": patient.pseudo_organs,
        "truth": patient.truth,
    }
    numbers = _numbers(labels or load_labels())
    for key, path in case_files(case).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = volumes[key] if key == "image" else numbers[volumes[key]]
        array, affine = store_as(voxels, patient.affine, plan.axes)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
        volume = new_volume(array, tuple(spacing.tolist()), affine)
        (write_image if key == "image" else write_label)(path, array, volume)


def _numbers(labels: Labels) -> np.ndarray:
    """The value in a class table of each of `VALUES`."""
    if missing := [name for name in VALUES if name not in labels.names]:
        cause = f"lacks {missing[0]}, which the phantom draws"
        raise Problems.one(cause, "add it, or use a phantom's own table", file="labels")
    numbers = np.zeros(max(VALUES.values()) + 1, np.uint8)
    for name, value in VALUES.items():
        numbers[value] = labels.by_name(name).value
    return numbers


def store_as(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """A canonical (z, y, x) array and its RAS affine with the axes stored in other directions."""
    change = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(axes)
    )
    stored = orientations.apply_orientation(array.T, change).T
    return stored, affine @ orientations.inv_ornt_aff(change, array.shape[::-1])


def partial_label(patient: "Patient", group: Group) -> np.ndarray:
    """The label map as the case's source would have it: uint8, (z, y, x).

    Where a source does not annotate tumours, their voxels carry the organ that they grow in.
    """
    if group.split != "train":
        return patient.truth
    names = load_sources(config_folder() / "sources.yaml", load_labels())[group.source].annotated
    full = patient.truth if "tumour" in names else patient.organs
    return np.where(np.isin(full, [VALUES[name] for name in names]), full, 0).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Anatomy: centres, radii and nodes in patient mm


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, turned by `angle` degrees about z."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    angle: float = 0

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Roughly the distance in mm from points (3, …) to the surface; negative inside."""
        cos, sin = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        scaled = np.einsum("ij,j...->i...", (turn / np.c_[self.radii]).astype(np.float32), points)
        scaled -= _column((turn @ self.centre) / self.radii, points)
        level = np.sqrt(np.einsum("i...,i...", scaled, scaled)) + np.float32(1e-3)
        scaled /= _column(self.radii, points)
        slope = np.sqrt(np.einsum("i...,i...", scaled, scaled))
        return level * (level - 1) / (slope + np.float32(1e-3 / min(self.radii)))


@dataclass(frozen=True)
class Tube:
    """A tube through nodes (x, y, z, radius)."""

    nodes: tuple[tuple[float, float, float, float], ...]

    @property
    def centre(self) -> tuple[float, ...]:
        return tuple(np.mean(self.nodes, axis=0)[:3])

    def distance(self, points: np.ndarray) -> np.ndarray:
        """The distance in mm from points (3, …) to the surface; negative inside."""
        nearest = np.float32(np.inf)
        for start, end in zip(self.nodes[:-1], self.nodes[1:], strict=True):
            axis = np.subtract(end, start).astype(np.float32)
            away = points - _column(start[:3], points)
            along = np.einsum("j,j...->...", axis[:3] / (axis[:3] @ axis[:3]), away).clip(0, 1)
            away -= along * _column(axis[:3], points)
            distance = np.sqrt(np.einsum("i...,i...", away, away))
            nearest = np.minimum(nearest, distance - (np.float32(start[3]) + along * axis[3]))
        return nearest


def _column(values: Sequence[float], points: np.ndarray) -> np.ndarray:
    """Three values in the shape that broadcasts against points (3, …)."""
    return np.asarray(values, np.float32).reshape(3, *[1] * (points.ndim - 1))


Shape = Ellipsoid | Tube

# In the order of drawing: a later organ displaces an earlier one.
ORGANS: dict[str, tuple[Shape, ...]] = {
    "liver": (
        Ellipsoid((68, 2, 24), (56, 68, 50)),
        Ellipsoid((8, 36, 34), (56, 30, 27), -12),
        Ellipsoid((84, -8, -14), (36, 44, 46)),
    ),
    "stomach": (
        Tube(((-56, -4, 46, 27), (-62, 22, 22, 29), (-48, 42, -4, 24), (-12, 46, -16, 18))),
        Tube(((-12, 46, -16, 18), (16, 40, -14, 12))),
    ),
    "spleen": (Ellipsoid((-94, -32, 30), (24, 46, 46), -30),),
    "pancreas": (Tube(((30, 4, -32, 15), (12, 12, -14, 12), (-22, 8, 0, 12), (-62, -12, 12, 12))),),
    "duodenum": (
        Tube(((22, 36, -14, 12), (46, 22, -12, 13), (56, 2, -28, 13), (52, -2, -56, 13))),
        Tube(((52, -2, -56, 13), (24, -2, -68, 12), (-16, 2, -64, 11))),
    ),
    "right_kidney": (Ellipsoid((62, -42, -28), (26, 24, 46), 35),),
    "left_kidney": (Ellipsoid((-62, -42, -12), (26, 24, 46), -35),),
    "gallbladder": (Ellipsoid((48, 40, -20), (14, 20, 18), 20),),
    "ivc": (Tube(((20, -26, -110, 11), (20, -24, 0, 11), (24, -14, 50, 12), (18, -4, 110, 13))),),
    "aorta": (Tube(((-12, -24, -110, 10), (-12, -24, 20, 11), (-20, -32, 110, 13))),),
    "oesophagus": (Tube(((-12, -14, 110, 9), (-14, -8, 64, 9), (-42, -2, 48, 9))),),
    "right_adrenal": (Ellipsoid((41, -38, 30), (9, 14, 16), -20),),
    "left_adrenal": (Ellipsoid((-38, -36, 38), (9, 14, 16), 20),),
}
VALUES = {label.name: label.value for label in load_labels().labels}
KIDNEYS = ("right_kidney", "left_kidney")
# Organs that also run through the chest; the others end at the diaphragm.
CHEST = ("ivc", "aorta", "oesophagus")
# The hollow of a kidney: fat that belongs to no organ.
SINUSES = {
    "right_kidney": Ellipsoid((44, -29, -28), (17, 9, 18), 35),
    "left_kidney": Ellipsoid((-44, -29, -12), (17, 9, 18), -35),
}
PORTAL_VEIN = (
    Tube(((12, 6, -90, 6), (14, 2, -20, 7), (32, 4, 10, 7), (62, 4, 20, 5), (88, 20, 30, 4))),
    Tube(((32, 4, 10, 6), (24, 26, 30, 5), (6, 40, 36, 4))),
    Tube(((62, 4, 20, 5), (84, -26, 26, 4))),
)
DIAPHRAGM = (
    Ellipsoid((68, -2, 10), (78, 92, 54)),
    Ellipsoid((-66, -6, 10), (74, 90, 52)),
    Ellipsoid((0, 20, 10), (60, 70, 42)),
)
HEART = Ellipsoid((-18, 26, 88), (58, 46, 28))
COLON = (
    Tube(((98, 4, -110, 18), (100, 8, -46, 19), (62, 52, -52, 17), (0, 58, -64, 17))),
    Tube(((0, 58, -64, 17), (-62, 54, -40, 16), (-102, -4, -22, 15), (-102, -20, -110, 14))),
)

# Attenuation in HU: portal venous phase, strong contrast so that little training is enough.
ORGAN_HU = {
    "liver": 110,
    "right_kidney": 170,
    "spleen": 125,
    "pancreas": 95,
    "aorta": 190,
    "ivc": 150,
    "right_adrenal": 80,
    "left_adrenal": 80,
    "gallbladder": 12,
    "oesophagus": 55,
    "stomach": 45,
    "duodenum": 60,
    "left_kidney": 170,
}
AIR_MM = ((0, 0), (18, 90), (12, 60))
"""Range of the air beside a patient on either side of each axis (z, y, x), where there is some."""
AIR, LUNG, FAT, MUSCLE, DISC, MARROW, BONE, COUCH = -1000, -780, -95, 55, 85, 210, 320, -500
GAS, VESSEL, CYST, BLOOD = -850, 150, 5, 140
NOISE_HU = 12
# Tumours relative to the organ that they grow in.
TUMOUR_HU, KIDNEY_TUMOUR_HU, CORE_HU = -100, -140, -25
TUMOUR_RADIUS_MM, LARGE_TUMOUR_MM = (13, 22), 17
TUMOUR_HOSTS = ("liver", "right_kidney", "left_kidney", "pancreas")
SMALL_ORGANS = ("right_adrenal", "left_adrenal", "gallbladder", "oesophagus")


# ---------------------------------------------------------------------------------------------
# Drawing


@dataclass(frozen=True)
class Patient:
    """A drawn case in canonical order: arrays (z, y, x) with RAS axes.

    `image` is int16 HU; the rest uint8. `organs` has tumour voxels as the organ that they grow in,
    `truth` as tumour; `pseudo_organs` is what an imperfect organ network would give.
    """

    image: np.ndarray
    organs: np.ndarray
    truth: np.ndarray
    pseudo_organs: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Canvas:
    """What the drawing functions paint on, in place: all arrays (z, y, x).

    `points` are patient mm, shape (3, z, y, x); `hu` float32; `organs` uint8 class values;
    `cavity` is the inside of the wall of muscle and ribs, without the spine.
    """

    points: np.ndarray
    hu: np.ndarray
    organs: np.ndarray
    cavity: np.ndarray


def draw_patient(
    name: str, *, seed: int, shape: Sequence[int], spacing_mm: Sequence[float]
) -> Patient:
    """Draw a case of the phantom by its name; parameters and errors as of `write_case`."""
    plan = plans()[name]

    def random(purpose: str) -> np.random.Generator:
        key = f"{seed}/{name}/{plan.group.source}/{plan.tumour}/{purpose}"
        return np.random.default_rng(int.from_bytes(blake2b(key.encode(), digest_size=16).digest()))

    air = random("air").uniform(*np.array(AIR_MM).T, (2, 3)) * plan.air
    straight, spacing, affine = make_grid(random("grid"), shape, spacing_mm, plan.tilted, air)
    rng = random("anatomy")
    bend = np.stack([5 * waves(rng, straight, 75) for _ in range(3)])
    points = straight / np.float32(rng.uniform(0.96, 1.04)) + bend
    hu, cavity = draw_body(rng, straight + np.float32(0.4) * bend)
    canvas = Canvas(points, hu, np.zeros(hu.shape, np.uint8), cavity)
    distances = place_organs(rng, canvas)
    missing = [organ for organ in ORGANS if not (canvas.organs == VALUES[organ]).any()]
    if missing:
        cause = f"the phantom's grid is too coarse or small for {', '.join(missing)}"
        cure = "give phantom.shape and phantom.spacing_mm 28x56x80 voxels of 6x4x4 mm or the like"
        raise Problems.one(cause, cure, case=name)
    draw_surroundings(rng, canvas)
    organ_hu = draw_organs(rng, canvas, distances)
    draw_cysts(random("cysts"), canvas)
    number = np.zeros_like(canvas.organs)
    if plan.tumour:
        first = {"phantom-liver": ("liver",), "phantom-kidneys": KIDNEYS}
        hosts = first.get(plan.group.source, TUMOUR_HOSTS)
        number = draw_tumours(random("tumours"), canvas, distances, organ_hu, hosts)
    return Patient(
        image=scan(random("noise"), hu),
        organs=canvas.organs,
        truth=np.where(number > 0, np.uint8(VALUES["tumour"]), canvas.organs),
        pseudo_organs=imitate_organ_network(random("pseudo-label"), canvas, number, spacing),
        affine=affine,
    )


def make_grid(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    tilted: bool,
    air_mm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A case's own grid: slices up to 1/6 thicker or thinner, pixels up to 5 %, same field of view.

    The latter is widened by `air_mm`, (2, 3): before and behind it on each axis (z, y, x).

    Returns
    -------
    points : float32, (3, z, y, x)
        Patient mm (x, y, z) of each voxel.
    spacing : float64, (3,)
        In mm, (z, y, x).
    affine : float64, (4, 4)
        Voxel (x, y, z) to world mm; the patient is not in the middle of the world either.
    """
    slices, pixels = rng.uniform(5 / 6, 7 / 6), rng.uniform(0.95, 1.05)
    spacing = np.round(np.asarray(spacing_mm) * (slices, pixels, pixels), 2)
    size = np.round(np.asarray(shape) * spacing_mm / spacing).astype(int)
    middle = rng.uniform((-6, -10, -300), (6, 10, 300)).round(1)
    turns = np.radians(rng.uniform(3.5, 6, 2) * rng.choice((-1, 1), 2))
    affine = np.eye(4)
    if tilted:
        (c, d), (s, t) = np.cos(turns), np.sin(turns)
        about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        affine[:3, :3] = about_z @ [[1, 0, 0], [0, d, -t], [0, t, d]]
    affine[:3, :3] *= spacing[::-1]
    before, behind = np.round(air_mm / spacing).astype(int)
    corner = -affine[:3, :3] @ ((size[::-1] - 1) / 2 + before[::-1])
    size += before + behind
    affine[:3, 3] = corner + middle
    indices = np.indices(size)[::-1]
    points = np.einsum("ij,j...->i...", affine[:3, :3], indices) + corner.reshape(3, 1, 1, 1)
    return points.astype(np.float32), spacing, affine


def waves(
    rng: np.random.Generator, points: np.ndarray, wavelength: float, count: int = 5
) -> np.ndarray:
    """A smooth random field of mean 0 and mean square 1 at points (3, …): a few plane waves.

    It is a function of place, hence the same on every grid.
    """
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    numbers = directions * (2 * np.pi / (wavelength * rng.uniform(0.8, 1.3, (count, 1))))
    # einsum here and elsewhere, as BLAS starts threads that only cost time and may round otherwise
    angles = np.einsum("ij,j...->i...", numbers.astype(np.float32), points)
    phases = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    angles += phases.reshape(-1, *[1] * (points.ndim - 1))
    return np.sin(angles, out=angles).sum(axis=0) * np.float32(np.sqrt(2 / count))


def draw_body(rng: np.random.Generator, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Skin to spine: `hu` and `cavity` of a `Canvas`; the cavity is filled with fat."""
    x, y, z = points / np.float32(rng.uniform(0.96, 1.02))
    radius = np.hypot(x, y)
    outline = (np.abs(x / 145) ** 2.4 + np.abs(y / 98) ** 2.4) ** np.float32(1 / 2.4)
    depth = radius * (1 / np.maximum(outline, 1e-3) - 1)
    fat = rng.uniform(9, 17) + 4 * np.abs(x) / 145
    inside = depth > 0
    cavity = (depth > fat + 11) & (y > -66)

    hu = np.full(x.shape, AIR, np.float32)
    hu[(np.abs(x) < 135) & (y < -104) & (y > -109)] = COUCH
    hu[inside] = FAT
    hu[depth > fat] = MUSCLE
    hu[inside & (depth < 4)] = FAT + 60  # skin
    rib = z + 0.4 * y + 0.15 * np.abs(x)
    ribs = (np.abs(rib % 27 - 13.5) < 4.5) & (rib > -40) & (np.abs(x) > 24)
    hu[ribs & (depth > fat + 3) & (depth < fat + 10)] = BONE
    hu[cavity] = FAT
    psoas = np.hypot((np.abs(x) - 37) / 16, (y + 48) / 17) < 1.1 - np.maximum(z + 30, 0) / 60
    hu[cavity & psoas] = MUSCLE

    level = (z + rng.uniform(0, 32)) % 32
    vertebra = np.hypot(x / 21, (y + 52) / 16)
    canal = np.hypot(x, y + 76)
    process = (np.abs(x) < 4) & (y < -84) & (y > -97)
    hu[((canal < 14) & (canal > 9) | process) & (level < 22)] = BONE
    hu[canal <= 9] = MUSCLE - 20
    hu[vertebra < 1] = BONE
    hu[vertebra < 0.86] = MARROW
    hu[(vertebra < 1) & (level > 25)] = DISC
    return hu, cavity & (vertebra >= 1)


def place_organs(rng: np.random.Generator, canvas: Canvas) -> dict[str, np.ndarray]:
    """Set `organs`: each organ of the atlas moved, resized (13 %) and with a rippled surface.

    Returns each organ's distance in mm to its surface, negative inside, as if it were alone.
    """
    _, _, z = canvas.points
    below = canvas.cavity & ((z < 10) | (_distance(DIAPHRAGM, canvas.points) < 0))
    distances = {}
    for name, shapes in ORGANS.items():
        centre = _column(np.mean([shape.centre for shape in shapes], axis=0), canvas.points)
        shift = _column(rng.normal(0, 2, 3).clip(-4, 4), canvas.points)
        scale = np.float32(rng.uniform(0.87, 1.13))
        points = (canvas.points - centre - shift) / scale + centre
        distance = _distance(shapes, points) * scale
        if name in SINUSES:
            distance = np.maximum(distance, -SINUSES[name].distance(points) * scale)
        distance += np.float32(1.6) * waves(rng, canvas.points, 25)
        distances[name] = distance
        room = canvas.cavity if name in CHEST else below
        canvas.organs[room & (distance < 0)] = VALUES[name]
    return distances


def _distance(shapes: Sequence[Shape], points: np.ndarray) -> np.ndarray:
    """The distance in mm to the surface of shapes that are one; negative inside."""
    return np.minimum.reduce([shape.distance(points) for shape in shapes])


def draw_surroundings(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paint what is in the cavity and no organ: lungs, heart, bowel with gas, small vessels."""
    points, hu = canvas.points, canvas.hu
    x, y, z = points
    dome = _distance(DIAPHRAGM, points)
    chest = canvas.cavity & (z >= 10) & (dome >= 0)
    free = canvas.cavity & (canvas.organs == 0)
    net = [np.abs(waves(rng, points, 45)) for _ in range(3)]

    lungs = chest & (np.hypot((x + 6) / 34, y / 90) > 1)
    hu[free & lungs] = LUNG + 60 * waves(rng, points, 50)[free & lungs]
    hu[free & lungs & (np.maximum(net[0], net[1]) < 0.35)] = -200
    hu[free & chest & (dome < 4)] = MUSCLE
    hu[free & chest & (HEART.distance(points) < 0)] = BLOOD

    abdomen = free & ~chest
    hu[abdomen & (np.maximum(net[1], net[2]) < 0.3)] += 110
    hu[abdomen & (PORTAL_VEIN[0].distance(points) < 0)] = VESSEL
    gas = waves(rng, points, 40)
    colon = _distance(COLON, points) + np.float32(1.6) * waves(rng, points, 25)
    hu[abdomen & (colon < 0)] = MUSCLE
    inside = abdomen & (colon < -4)
    hu[inside] = np.where(gas > 0.2, GAS, -20 + 60 * gas)[inside]
    for _ in range(rng.integers(6, 10)):
        middle = rng.uniform((-75, -20, -90), (75, 55, -35))
        ends = [middle + sign * rng.uniform((10, -8, -8), (28, 8, 8)) for sign in (-1, 1)]
        radius = rng.uniform(11, 16)
        loop = Tube(tuple((*end, radius) for end in ends)).distance(points)
        content = rng.uniform(10, 70)
        level = middle[1] + radius * rng.uniform(-0.2, 1.5)
        hu[abdomen & (loop < 0)] = MUSCLE + 15
        hu[abdomen & (loop < -3)] = content
        hu[abdomen & (loop < -3) & (y > level)] = GAS


def draw_organs(
    rng: np.random.Generator, canvas: Canvas, distances: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Paint the organs in the case's own contrast phase; returns the HU of each."""
    points, hu = canvas.points, canvas.hu
    phase, other = rng.uniform(-14, 14), rng.uniform(-6, 6)
    enhanced = ("aorta", "ivc", *KIDNEYS)
    organ_hu = {n: v + (phase if n in enhanced else other) for n, v in ORGAN_HU.items()}
    texture = 4 * waves(rng, points, 22, count=8)
    for name, value in organ_hu.items():
        here = canvas.organs == VALUES[name]
        hu[here] = value + texture[here]
    liver = canvas.organs == VALUES["liver"]
    hu[liver & (_distance(PORTAL_VEIN, points) < 0)] = organ_hu["liver"] + 35
    for name in KIDNEYS:
        hu[(canvas.organs == VALUES[name]) & (distances[name] < -9)] -= 25  # medulla
    stomach = canvas.organs == VALUES["stomach"]
    top = np.quantile(points[1][stomach], rng.uniform(0.75, 0.95)) if stomach.any() else 0
    hu[stomach & (distances["stomach"] < -4) & (points[1] > top)] = GAS
    return organ_hu


def draw_cysts(rng: np.random.Generator, canvas: Canvas) -> None:
    """Paint up to three cysts in liver and kidneys: they look like tumours, but are none."""
    for _ in range(rng.integers(0, 4)):
        host = canvas.organs == VALUES[rng.choice(TUMOUR_HOSTS[:3])]
        radius = rng.uniform(5, 9)
        centre = _pick(rng, canvas.points, host)
        hit = Ellipsoid(centre, (radius, radius, radius)).distance(canvas.points) < 0
        canvas.hu[host & hit] = CYST


def draw_tumours(
    rng: np.random.Generator,
    canvas: Canvas,
    distances: Mapping[str, np.ndarray],
    organ_hu: Mapping[str, float],
    first_hosts: Sequence[str],
) -> np.ndarray:
    """Paint one to three tumours, the first in one of `first_hosts`.

    A tumour in the liver stays in it, others also grow into fat and bowel; `organs` then calls
    these voxels the host's. Returns the tumours' numbers from 1: uint8, (z, y, x).
    """
    number = np.zeros_like(canvas.organs)
    nearest = np.full(canvas.hu.shape, np.inf, np.float32)
    hosts = [str(rng.choice(first_hosts))]
    for _ in range(rng.integers(0, 3)):
        rest = [host for host in TUMOUR_HOSTS[1:] if host not in hosts]
        hosts.append("liver" if rng.random() < 0.5 or not rest else str(rng.choice(rest)))
    soft = canvas.cavity & (canvas.hu > -200)
    for index, host in enumerate(hosts, start=1):
        radius = rng.uniform(*TUMOUR_RADIUS_MM)
        organ = canvas.organs == VALUES[host]
        margin = 0.6 * radius if host == "liver" else 4
        apart = organ & (nearest > TUMOUR_RADIUS_MM[1])
        places = apart & (distances[host] < -margin)
        if not places.any():
            places = apart
        if not places.any():
            continue
        centre = _pick(rng, canvas.points, places)
        radii = tuple(radius * rng.uniform(0.88, 1.12, 3))
        distance = Ellipsoid(centre, radii, rng.uniform(0, 180)).distance(canvas.points)
        distance += np.float32(1.6) * waves(rng, canvas.points, 25)
        room = organ if host == "liver" else organ | (soft & (canvas.organs == 0))
        hit = _largest_piece(room & (distance < 0) & (number == 0))
        nearest = np.minimum(nearest, distance)
        number[hit] = index
        canvas.organs[hit] = VALUES[host]
        value = organ_hu[host] + (KIDNEY_TUMOUR_HU if host in KIDNEYS else TUMOUR_HU)
        canvas.hu[hit] = value + 5 * waves(rng, canvas.points, 15)[hit]
        if radius > LARGE_TUMOUR_MM:
            canvas.hu[hit & (distance < -0.5 * radius)] += CORE_HU
    return number


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    pieces, _ = scipy.ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return mask & (pieces == sizes.argmax())


def _pick(rng: np.random.Generator, points: np.ndarray, mask: np.ndarray) -> tuple[float, ...]:
    """A random point of a mask, in patient mm."""
    found = np.flatnonzero(mask)
    return tuple(points.reshape(3, -1)[:, rng.choice(found)].tolist())


def scan(rng: np.random.Generator, hu: np.ndarray) -> np.ndarray:
    """Blur edges and add a scanner's noise, smooth in plane: int16 HU."""
    noise = scipy.ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0, 0.5, 0.5))
    noise *= NOISE_HU * rng.uniform(0.8, 1.25) / noise.std()
    image = scipy.ndimage.gaussian_filter(hu, (0, 0.5, 0.5)) + noise
    return np.round(image).clip(-1024, 3071).astype(np.int16)


def imitate_organ_network(
    rng: np.random.Generator, canvas: Canvas, number: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """The organs with a network's errors: uint8, (z, y, x).

    Surfaces moved by about 1.7 mm, tumours taken for their organ (70 %) or missing, an organ's
    end cut off (35 %), a leak into its surroundings (30 %), a small organ missing (10 %).
    """
    organs = canvas.organs.copy()
    for index in range(1, number.max() + 1):
        if rng.random() > 0.7:
            organs[number == index] = 0
    moves = [1.7 * waves(rng, canvas.points, 40) / step for step in spacing]
    places = np.indices(organs.shape, dtype=np.float32) + np.stack(moves)
    organs = scipy.ndimage.map_coordinates(organs, places, order=0, mode="nearest")
    for name in ORGANS:
        mask = organs == VALUES[name]
        if not mask.any():
            continue
        if rng.random() < 0.35:
            direction = rng.normal(size=3)
            along = np.einsum("j,j...->...", direction.astype(np.float32), canvas.points)
            organs[mask & (along > np.quantile(along[mask], rng.uniform(0.75, 0.92)))] = 0
        if rng.random() < 0.3:
            edge = mask & ~scipy.ndimage.binary_erosion(mask)
            leak = Ellipsoid(_pick(rng, canvas.points, edge), (rng.uniform(8, 14),) * 3)
            free = canvas.cavity & (organs == 0)
            organs[free & (leak.distance(canvas.points) < 0)] = VALUES[name]
        if name in SMALL_ORGANS and rng.random() < 0.1:
            organs[organs == VALUES[name]] = 0
    return organs
