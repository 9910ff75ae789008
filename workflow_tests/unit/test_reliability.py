"""Every row of the fault table has its test, and what no table can list is fuzzed."""

import re
import subprocess
import sys
from pathlib import Path

from fault_rows import fault_rows

TESTS = Path(__file__).parents[1]
FEWEST = 60


def test_every_row_is_tied_to_a_test_and_every_mark_to_a_row():
    marked = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r'\bfault\(\s*"([a-z0-9-]+)"', path.read_text(encoding="utf-8"))
    }
    rows = fault_rows()
    assert marked == rows.keys()
    assert len(rows) >= FEWEST
    assert all(row.lines for row in rows.values())


def test_mutated_files_are_read_as_plain_readers_read_them_or_refused_in_a_line():
    command = [sys.executable, str(TESTS / "fuzz.py"), "--count", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
