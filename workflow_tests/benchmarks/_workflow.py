"""The jobs that Snakemake plans, to be run or counted without it."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def planned() -> tuple[list[SimpleNamespace], dict[int, list[int]]]:
    """All jobs of the project in the working directory, each after those that it needs.

    Returns
    -------
    jobs
        What a rule's script sees of its job, the rule's name, and the path of the script.
    needs
        For the place of each job in that list, the places of the jobs whose files it reads.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        flow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=[Path("config/run.yaml")]),
            snakefile=Path("Snakefile"),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            flow.dag().printrulegraph()  # plans all jobs
        dag = flow._workflow.dag
        jobs = [job for level in dag.toposorted() for job in level if job.rule.script]
        place = {job: at for at, job in enumerate(jobs)}
        needs = {
            place[job]: [place[other] for other in dag.dependencies[job] if other in place]
            for job in jobs
        }
        return [_described(job) for job in jobs], needs


def _described(job: Any) -> SimpleNamespace:
    names = ("input", "output", "params", "wildcards", "log", "threads")
    return SimpleNamespace(
        rule=job.rule.name,
        script=Path("scripts", Path(job.rule.script).name),
        gpu="gpu" in job.rule.resources,
        resources={},
        config={},
        **{name: getattr(job, name) for name in names},
    )
