"""The classes, read from `config/labels.yaml`: values, names, tolerances, slice rule, colours."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from panorgan.config.reading import faults, read_yaml
from panorgan.problems import Problem, Problems

ANNOTATED, ABSENT, UNKNOWN = STATES = ("annotated", "absent", "unknown")
"""What may be known of a class in a case: the label has it, it is not there, nobody looked."""

RESERVED = (
    *("case", "split", "shard", "source", "patient", "image", "label", "organs", "tumour_scope"),
    *("background", "ignore", "all", "none", "tumour_positive"),
)
"""What tables, model folders and lists of classes have beside classes."""

REPORT = "report.json"
"""What `panorgan predict` writes beside its label maps; names their classes."""

Model = TypeVar("Model", bound=BaseModel)


class Table(BaseModel):
    """A table in YAML: unknown keys are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Label(Table):
    """One class: a value in the label maps and how it is scored and shown."""

    value: Annotated[int, Field(ge=1, le=254)]
    name: str
    title: str
    tolerance_mm: Annotated[float, Field(gt=0)]
    crop_slices: bool
    colour: str
    side: Literal["left", "right"] | None = None
    volume_ml: Annotated[tuple[float, float], Field(strict=False)] | None = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ValueError(f"'{name}' is no class name; use a-z, 0-9 and '_', a letter first")
        return name

    @field_validator("title")
    @classmethod
    def _is_seen(cls, title: str) -> str:
        if not title.strip():
            raise ValueError("is empty; write what the class is called in reports")
        if not title.isprintable():
            raise ValueError(f"{title!r} holds characters that cannot be shown; remove them")
        return title

    @field_validator("volume_ml")
    @classmethod
    def _is_a_range(cls, ml: tuple[float, float] | None) -> tuple[float, float] | None:
        if ml and not 0 <= ml[0] < ml[1]:
            raise ValueError(f"{ml[0]:g} to {ml[1]:g} is no range; write a least and a larger one")
        return ml

    @field_validator("colour")
    @classmethod
    def _is_a_colour(cls, colour: str) -> str:
        if not re.fullmatch("#[0-9a-f]{6}", colour):
            cure = "write '#' and six of 0-9 and a-f, in quotes"
            raise ValueError(f"'{colour}' is no colour; {cure}")
        return colour


class Labels(Table):
    """The class table. Organs are all classes but the tumour."""

    labels: Annotated[tuple[Label, ...], Field(min_length=1, strict=False)]  # YAML has lists
    tumour_name: Annotated[str, Field(alias="tumour")]
    ignore: Annotated[int, Field(ge=1, le=255)]

    @model_validator(mode="after")
    def _consistent(self) -> "Labels":
        if len(set(self.values)) != len(self.values):
            raise ValueError("two classes have the same value")
        if len(set(self.names)) != len(self.names):
            raise ValueError("two classes have the same name")
        if len({label.title for label in self.labels}) != len(self.labels):
            raise ValueError("two classes have the same title")
        if reserved := sorted({*self.names} & {*RESERVED}):
            raise ValueError(f"'{reserved[0]}' cannot be a class's name: it means something else")
        if self.tumour_name not in self.names:
            raise ValueError(f"tumour is '{self.tumour_name}', which is no class")
        if self.values != tuple(range(1, len(self.values) + 1)):
            raise ValueError("values must be 1, 2, 3, … in this order: networks need that")
        if self.ignore != len(self.values) + 1:
            raise ValueError(f"ignore must be {len(self.values) + 1}, the value after the last")
        return self

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(label.value for label in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def tumour(self) -> Label:
        return self.by_name(self.tumour_name)

    @property
    def organs(self) -> tuple[Label, ...]:
        return tuple(label for label in self.labels if label.name != self.tumour_name)

    @property
    def pairs(self) -> tuple[tuple[Label, Label], ...]:
        """Right and left partners, such as ``right_kidney`` and ``left_kidney``."""
        found = {label.name: label for label in self.labels if label.side == "left"}
        return tuple(
            (label, found[partner])
            for label in self.labels
            if label.side == "right" and (partner := label.name.replace("right", "left")) in found
        )

    def by_value(self, value: int) -> Label:
        """The class of a value; KeyError if there is none."""
        return next_or_key_error((lb for lb in self.labels if lb.value == value), value)

    def by_name(self, name: str) -> Label:
        """The class of a name; KeyError if there is none."""
        return next_or_key_error((lb for lb in self.labels if lb.name == name), name)

    def parse(self, text: str) -> tuple[Label, ...]:
        """Classes from a comma list of names or values, as people type it.

        ``all`` is every class and ``none`` or an empty text is no class.

        Raises
        ------
        ValueError
            If a part is no class; the text names the nearest right name.
        """
        text = text.strip()
        if text in ("", "none"):
            return ()
        if text == "all":
            return self.labels
        return tuple(self._parse_one(part.strip()) for part in text.split(","))

    def parse_scope(self, text: str) -> tuple[int, ...] | None:
        """Values of the organs in which annotators looked for tumours, from a list as typed.

        ``all`` and an empty text are everywhere: None.

        Raises
        ------
        ValueError
            If a part is no class or the tumour itself, or the list is ``none``.
        """
        if text.strip() in ("", "all"):
            return None
        scope = tuple(sorted({label.value for label in self.parse(text)}))
        if not scope:
            raise ValueError("'none' is no scope; leave it empty for everywhere")
        if self.tumour.value in scope:
            raise ValueError(f"'{self.tumour_name}' is no organ; name those searched for tumours")
        return scope

    def _parse_one(self, part: str) -> Label:
        known = {label.name: label for label in self.labels}
        known |= {str(label.value): label for label in self.labels}
        if part not in known:
            near = get_close_matches(part.lower(), self.names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self.names)}"
            raise ValueError(f"'{part}' is no class; {hint}")
        return known[part]


def next_or_key_error(found: Iterable[Label], key: object) -> Label:
    """The first of some labels, or KeyError with what was looked for."""
    for label in found:
        return label
    raise KeyError(key)


def config_folder() -> Path:
    """Where the shipped tables are: the checkout's ``config/``, or the installed package's data."""
    checkout = Path(__file__).parents[3] / "config"
    return checkout if (checkout / "labels.yaml").exists() else Path(__file__).parents[1] / "data"


def demo_model() -> Path:
    """The small model that comes along: in a checkout's ``docs/``, else in the package's data."""
    checkout = Path(__file__).parents[3] / "docs" / "demo_model"
    return checkout if checkout.exists() else Path(__file__).parents[1] / "data" / "demo_model"


@cache
def load_labels(path: str | Path | None = None) -> Labels:
    """Read a class table; without a path the one shipped with panorgan.

    Raises
    ------
    Problems
        If the file is missing, no YAML or breaks a rule of the table.
    """
    path = Path(path) if path else config_folder() / "labels.yaml"
    return read_table_of(path, Labels, "labels")


def check_predicted(place: Path, labels: Labels) -> None:
    """Refuse a label map, or a folder of them, whose report names their classes otherwise.

    Raises
    ------
    Problems
        If a class of the model that made them is another one in the table, or none.
    """
    path = (place if place.is_dir() else place.parent) / REPORT
    try:
        classes = json.loads(path.read_text())["classes"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return  # made by somebody else, who does not say
    known = {str(label.value): label.name for label in labels.labels}
    for value, name in classes:
        if known.get(value) != name:
            cause = f"says that {value} is {name}, which is {known.get(value, 'no class')} in the "
            cure = (
                "name the model's table with --labels, or its classes with panorgan convert "
                "--classes"
            )
            raise Problems.one(f"{cause}class table", cure, file=path)


def read_table_of(path: str | Path, model: type[Model], key: str) -> Model:
    """Read a YAML file into a typed model; `key` is the config's name for it.

    Raises
    ------
    Problems
        If the file is missing, no YAML, or breaks the model's form: each place of it.
    """
    content = read_yaml(path, f"check the path of `{key}`")
    try:
        return model.model_validate({} if content is None else content)
    except ValidationError as error:
        found = [
            (f"{key}: {cause}".lstrip(": "), cure) for key, cause, cure in faults(error, model)
        ]
        raise Problems(Problem("", str(path), *fault) for fault in found) from None
