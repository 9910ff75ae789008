"""The fault table of docs/reliability.md, which tests are tied to: a row says what a user sees."""

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs/reliability.md"
ANYTHING = "…"
"""Stands for what differs from call to call."""


@dataclass(frozen=True)
class FaultRow:
    """A row: its name, and the lines that a user sees, of which parts may be `ANYTHING`."""

    name: str
    lines: tuple[str, ...]

    def check(self, output: str) -> None:
        """Fail unless the output has each of the lines, and no traceback."""
        assert "Traceback" not in output, output
        for line in self.lines:
            pattern = ".*".join(map(re.escape, line.split(ANYTHING)))
            assert re.search(pattern, output), f"no line '{line}' in:\n{output}"


def fault_rows() -> dict[str, FaultRow]:
    """The rows by name."""
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `([a-z0-9-]+)` ", line):
            name, (_, _, seen, *_) = match[1], re.split(r"(?<!\\)\|", line)
            assert name not in rows, f"{TABLE}: two rows {name}"
            rows[name] = FaultRow(name, tuple(re.findall(r"`([^`]+)`", seen)))
    return rows
