"""How long Snakemake takes to plan the full recipe, and a trivial workflow beside it.

    python workflow_tests/benchmarks/planning.py [CASES]

Prints the shortest of some runs of `snakemake --dry-run` over a generated table (4,050 cases, the
FLARE23 numbers, unless told otherwise), and of the same for a Snakefile with one rule, which is
Snakemake's own start.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RUNS = 5


def write_table(folder: Path, cases: int) -> Path:
    """A table whose files exist: planning looks at each of them."""
    lines = ["case\timage\tlabel\tsplit\tsource\n"]
    for number in range(cases):
        split = "validation" if number >= cases - 50 else "train"
        image, label = f"FLARE23_{number:05d}_0000.nii.gz", f"FLARE23_{number:05d}.nii.gz"
        (folder / image).touch()
        if number < 2200 or split == "validation":
            (folder / label).touch()
        else:
            label = ""
        lines.append(f"FLARE23_{number:05d}\t{image}\t{label}\t{split}\tTr\n")
    table = folder / "cases.tsv"
    table.write_text("".join(lines))
    return table


def shortest(folder: Path, *arguments: str) -> float:
    """Seconds of the fastest of some dry runs."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet"]
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run([*command, *arguments], cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 4050
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(folder, cases)
        (folder / "Snakefile").write_text('rule all:\n    output: "x"\n    shell: "touch x"\n')
        full = shortest(REPOSITORY, "all", "--config", f"cases={table}", "run=planning")
        trivial = shortest(folder, "all")
    print(f"{cases} cases: {full:.2f} s; Snakemake's own start: {trivial:.2f} s")


if __name__ == "__main__":
    main()
