"""The one reader of YAML and JSON that people write, and the words for what is wrong in it."""

import json
import math
import re
from collections.abc import Iterator
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from panorgan.problems import Problem, Problems

MOST_PARTS = 100_000
"""Of a file with its aliases written out: nobody means more, and a few lines can make billions."""

EXPANDED = '{}<>$`"'
"""What must not stand in the path of a job's input: Snakemake takes the first four for wildcards
and variables of its own. The others reach a shell on a cluster: the SLURM plugin (2.8) puts a job's
command line, with its inputs in single quotes, into double quotes."""
NOT_EXPANDED = (
    "name or link a path without it: Snakemake, or the shell that submits jobs, would expand it"
)

_SHOWN = Repr()
_SHOWN.maxstring, _SHOWN.maxlevel = 80, 3


def read_yaml(path: str | Path, cure: str = "check the path") -> Any:
    """What a file says that is JSON or else YAML: Snakemake reads config files so.

    Parameters
    ----------
    path
        The file.
    cure
        Of a file that cannot be opened.

    Raises
    ------
    Problems
        If it cannot be read, is neither, has aliases without an end, or a key twice: of two values
        the last one would win in silence.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Problems.one(error.strerror, cure, file=path) from None
    except UnicodeDecodeError:
        raise Problems.one("is no UTF-8 text", "save it as UTF-8", file=path) from None
    try:
        try:
            content = json.loads(text)
        except ValueError:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            _check_keys(path, root)
            return loader.construct_document(root) if root else None
        # JSON is YAML, but for tabs between its parts.
        _check_keys(path, yaml.compose(text.replace("\t", " "), yaml.SafeLoader))
        return content
    except yaml.YAMLError as error:
        raise Problems.one(*_syntax(error, text), file=path) from None
    except RecursionError:
        raise Problems.one("is nested too deeply", "write it flatter", file=path) from None
    # Such as a 13th month; PyYAML's own, where a value is not what its tag says.
    except (ValueError, LookupError, AttributeError) as error:
        raise Problems.one(f"is no valid YAML: {error}", "mend the value", file=path) from None


def _syntax(error: yaml.YAMLError, text: str) -> tuple[str, str]:
    """Cause and cure of a file that is no YAML."""
    cure = "mend the line"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        number, problem = error.problem_mark.line + 1, error.problem
        if error.context_mark and error.context_mark.line != error.problem_mark.line:
            problem = f"{error.context} of line {error.context_mark.line + 1}, {problem}"
        if "'\\t'" in problem:
            cure = "indent with spaces, not with tabs"
    elif isinstance(error, yaml.reader.ReaderError):
        number = text.count("\n", 0, error.position) + 1
        problem = f"the character {error.character:#06x} is not allowed"
    else:
        return f"is no valid YAML: {' '.join(str(error).split())}", cure
    return f"is no valid YAML: line {number}: {problem}", cure


def _check_keys(path: str | Path, root: yaml.Node | None) -> None:
    """Problems for every key that stands twice in a mapping, and for aliases without an end."""
    problems: list[Problem] = []
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, name: str, above: tuple[int, ...]) -> int:
        """How many parts a node has, each alias written out."""
        if id(node) in above:
            cause = f"`{name}` contains itself (line {node.start_mark.line + 1})"
            raise Problems.one(cause, "write out what it is to hold", file=path)
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            parts = [(str(index), part) for index, part in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                parts = [(str(key.value), part) for key, part in node.value]
                problems.extend(Problem("", str(path), *fault) for fault in _twice(node, name))
            above = (*above, id(node))
            sizes[id(node)] = 1 + sum(size(part, _below(name, key), above) for key, part in parts)
        return sizes[id(node)]

    if root and size(root, "", ()) > MOST_PARTS:
        cause = f"has more than {MOST_PARTS:,} parts if its aliases are written out"
        raise Problems.one(cause, "use fewer", file=path)
    if problems:
        raise Problems(problems)


def _twice(node: yaml.MappingNode, name: str) -> Iterator[tuple[str, str]]:
    """Cause and cure of every key that stands twice in a mapping of a name."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line, known_as = key.start_mark.line + 1, (key.tag, str(key.value))
        if known_as in lines:
            where = f"in line {lines[known_as]} and in line {line}"
            yield f"has the key `{_below(name, str(key.value))}` twice: {where}", "remove one"
        lines[known_as] = line


def _below(name: str, key: str) -> str:
    return f"{name}.{key}".lstrip(".")


def faults(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """The key's path, cause and cure of all that a model refused.

    A validator's ValueError may say the cure itself, after a semicolon.
    """
    for item in error.errors():
        key = ".".join(map(str, item["loc"]))
        yield key, *_fault(item, model)


def _fault(item: dict[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    kind, value, where = item["type"], item["input"], item["loc"]
    shown = str(value) if isinstance(value, date) else _SHOWN.repr(value)
    if kind == "extra_forbidden":
        near = get_close_matches(str(where[-1]), _known_keys(model, where[:-1]), n=1)
        return "unknown key", f"did you mean '{near[0]}'?" if near else "remove it"
    if kind == "value_error":
        cause, _, cure = str(item["ctx"]["error"]).partition("; ")
        return cause, cure or "mend it there"
    if kind == "missing" or value is None:
        return "has no value", "set it"
    if kind == "literal_error":
        known = item["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = get_close_matches(str(value), known, n=1)
        cure = f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(known)}"
        return f"{shown} is not known", cure
    if kind in ("float_type", "int_type") and (number := _number(value, whole=kind == "int_type")):
        what = "text to YAML, no number" if isinstance(value, str) else "no integer"
        return f"{shown} is {what}", f"write {number}"
    if kind == "string_type" and isinstance(value, int | float | date):
        return f"{shown} is no text to YAML", "put it in quotes"
    if kind in ("model_type", "dict_type"):
        return f"{shown} is no section", "write its keys below it, one a line"
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{shown} is no good value", message.replace("input ", "it ")


def _number(value: object, *, whole: bool) -> str:
    """How YAML 1.1 writes the number that somebody meant; empty if none."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or isinstance(value, bool):
        return ""
    if whole:
        return str(int(number)) if number.is_integer() else ""
    if found := re.fullmatch(r"([-+]?\d+)(\.\d+)?[eE]([-+]?)(\d+)", text):
        before, after, sign, exponent = found.groups()
        return f"{before}{after or '.0'}e{sign or '+'}{exponent}"
    return str(number)


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Keys of the section at a place; what is no field of a model is an index or a free name."""
    for key in location:
        field = model.model_fields.get(str(key))
        for found in _models(field.annotation if field else None):
            model = found
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models inside an annotation such as ``Phantom | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)
