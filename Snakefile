# panorgan: from raw CT folders to an evaluated abdominal multi-organ and tumour model.
# Settings: config/config.yaml documents all; name your own on top of it with --configfile.
import atexit
import sys
import time
from functools import partial
from pathlib import Path

from snakemake.utils import min_version

from panorgan.cases.table import EVALUATED, KINDS
from panorgan.config.settings import MEMBER, fused_labels, labels_of
from panorgan.run.job import report_problems
from panorgan.config.registry import (
    FILLED,
    FIRST_STAGES,
    FUSED,
    MARGINAL,
    ORIGINS,
    VARIANTS,
    pattern,
)
from panorgan.stages import VERSIONS
from panorgan.run.inputs import Run, look_again_once, see_all_reasons
from panorgan.run.retries import retry_interruptions
from panorgan.run.slurm import lose_no_jobs

min_version("9.27")
see_all_reasons()
look_again_once()
retry_interruptions()
lose_no_jobs()


configfile: "config/config.yaml"


run = Run(config, workflow.configfiles)
settings, paths = run.config, run.paths
started = time.time()


pathvars:
    logs=paths.logs,


wildcard_constraints:
    shard=rf"({pattern(KINDS)})-\d+",
    round=r"[1-9]\d*",
    labels=pattern(FUSED),
    stage1=pattern(FIRST_STAGES),
    variant=pattern(VARIANTS),
    origin=pattern(ORIGINS),
    seed=MEMBER,
    split="|".join(EVALUATED),


include: "rules/common.smk"
include: "rules/cases.smk"
include: "rules/teacher.smk"
include: "rules/pseudo_labels.smk"
include: "rules/gate.smk"
include: "rules/fusion.smk"
include: "rules/student.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"
include: "rules/cleaning.smk"


localrules:
    all,
    preflight,
    teacher,
    labels,
    ablation,
    check_organs,
    deal_cases,
    free_preprocessed,


rule all:
    default_target: True
    input:
        rules.write_preflight.output,
        rules.write_report.output,
        # Else what a failed job has lost would not be missed while the report is there.
        rules.write_report.input,


# What is in the data and what a run will need; looks at every volume, trains nothing.
rule preflight:
    input:
        rules.write_preflight.output,
        rules.check_cases.output,
        paths.organs_checked if run.learns_filled else [],


# The trained teacher with its scores.
rule teacher:
    input:
        rules.score_teacher.output,


# The fused labels that the students of the first round learn from.
rule labels:
    input:
        [
            table
            for number, labels in fused_labels(settings)
            if number == 1
            for table in run.each(
                paths.fusion(labels, 1), run.fused_shards(labels), ".tsv"
            )
        ],


# What each step of the method brings: students that differ in their labels only, compared.
rule ablation:
    input:
        rules.write_ablation.output,


onsuccess:
    said = [
        Path(path)
        for path in (
            f"{paths.logs}/free_preprocessed.log",
            f"{paths.ablation}.md",
            paths.summary,
        )
        if Path(path).exists() and Path(path).stat().st_mtime >= started
    ]
    # What the preflight says is of the time before a run: at its end it is stale.
    preflight = Path(paths.logs, "write_preflight.log")
    if not said and preflight.exists() and preflight.stat().st_mtime >= started:
        said = [preflight]
    for path in said:
        print(path.read_text(), file=sys.stderr)


onerror:
    # At the very end, below Snakemake's own messages, where a user looks first.
    atexit.register(
        lambda: print(report_problems(paths.logs, started), file=sys.stderr)
    )
