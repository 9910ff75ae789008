"""What is wrong with the config files of a `snakemake` command, before Snakemake reads them.

Snakemake answers with a traceback, or with a line that names neither file nor line. The profiles
call this, as they are read before the config files.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from panorgan.config.settings import read_config_file
from panorgan.problems import Problem, Problems

ENDINGS = (".yaml", ".yml", ".json")

OBEYED = "$`"
"""What the shell by which jobs are submitted takes for a command within a name: `EXPANDED`."""


def check_arguments(arguments: Sequence[str] | None = None, *, submits: bool = False) -> None:
    """End the program with a line for each file behind ``--configfile`` that is no config.

    Parameters
    ----------
    arguments
        Of the command, after its name; None: of this program.
    submits
        Whether jobs go to a scheduler: then paths and values that jobs get on their command line
        must have nothing of `OBEYED`.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", default=[])
    parser.add_argument("--config", "-C", nargs="*", default=[])
    parser.add_argument("--snakefile", "-s", default="")
    parser.add_argument("--directory", "-d", default="")
    given = parser.parse_known_args(arguments)[0]
    names = given.configfile
    problems: list[Problem] = []
    if bad := {*"{}"} & {*os.getcwd()}:
        cause = f"has {min(bad)!r} in it, which Snakemake takes for a wildcard"
        problems.append(Problem("", os.getcwd(), cause, "rename the folder, or move this one"))
    if submits:
        for text in (os.getcwd(), *names, *given.config, given.snakefile, given.directory):
            if bad := {*OBEYED} & {*text}:
                cause = f"has {min(bad)!r} in it, which the shell obeys that submits jobs"
                problems.append(Problem("", text, cause, "use another name or value"))
    swallowed = []
    for name in names:
        try:
            read_config_file(name)
        except Problems as error:
            if name.endswith(ENDINGS):
                problems += error.problems
            else:
                swallowed.append(name)
    if swallowed:
        others = [part for part in arguments if part not in swallowed]
        command = shlex.join(["snakemake", *swallowed, *others])
        cause = "is no config file, and --configfile takes every name that follows it"
        problems.append(Problem("", " ".join(swallowed), cause, f"targets come first: {command}"))
    if problems:
        sys.exit("\n".join(map(str, problems)))
