"""Kill runs in every rule, one after the other, until the time is over: `make soak`.

    python workflow_tests/faults/soak.py --minutes 60 [--seed N]

Each run has a seed of its own, counted up from the first. One that does not end as an undisturbed
run stays where it is, and ends this.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from killing import kill_in_every_rule
from running import tiny_project


def main() -> None:
    """Run until the time is over; AssertionError if a run ends otherwise."""
    parser = argparse.ArgumentParser(description="Kill runs in every rule, many times.")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run begins after that")
    parser.add_argument("--seed", type=int, default=None, help="of the first run")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    end = time.monotonic() + 60 * options.minutes
    undisturbed = tiny_project(Path(tempfile.mkdtemp(prefix="soak-")) / "undisturbed")
    undisturbed.run()
    while time.monotonic() < end:
        began = time.monotonic()
        folder = undisturbed.folder.with_name(f"seed-{seed}")
        print(f"seed {seed}, in {folder}", end=": ", flush=True)
        driven = kill_in_every_rule(undisturbed, folder, seed)
        seconds = time.monotonic() - began
        print(f"as undisturbed after {driven.sessions} starts of Snakemake, {seconds:.0f} s")
        shutil.rmtree(folder)
        seed += 1
    shutil.rmtree(undisturbed.folder.parent)


if __name__ == "__main__":
    main()
