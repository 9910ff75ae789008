"""What Snakemake's plugin for SLURM (2.8.0) overlooks."""

import sys
from collections.abc import AsyncIterator
from typing import Any

PLUGIN = "snakemake_executor_plugin_slurm"


def lose_no_jobs() -> None:
    """Have the plugin ask again for jobs of which no word came.

    When the controller does not answer, the plugin forgets all jobs that it has submitted, and
    Snakemake waits for them for good.
    """
    # Snakemake itself imports what is installed; elsewhere there is nothing to mend.
    executor = getattr(sys.modules.get(PLUGIN), "Executor", None)
    if not executor or getattr(executor, "loses_no_jobs", False):
        return
    executor.loses_no_jobs = True
    check, succeed, fail = (
        getattr(executor, name)
        for name in ("check_active_jobs", "report_job_success", "report_job_error")
    )
    told: set[int] = set()

    def report_job_success(self: Any, job: Any) -> None:
        told.add(id(job))
        succeed(self, job)

    def report_job_error(self: Any, job: Any, *arguments: Any, **named: Any) -> None:
        told.add(id(job))
        fail(self, job, *arguments, **named)

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        told.clear()
        async for job in check(self, active_jobs):
            told.add(id(job))
            yield job
        for job in active_jobs:
            if id(job) not in told:
                yield job

    executor.check_active_jobs = check_active_jobs
    executor.report_job_success = report_job_success
    executor.report_job_error = report_job_error
