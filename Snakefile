# panorgan: from raw CT folders to an evaluated abdominal multi-organ and tumour model.
# Settings: config/config.yaml documents all; name your own on top of it with --configfile.
import atexit
import sys
import time
from pathlib import Path

from snakemake.utils import min_version

from panorgan.config import MEMBER, fused_labels
from panorgan.job import report_problems
from panorgan.registry import FUSED, MARGINAL, NOISE, ORIGINS, VARIANTS, pattern
from panorgan.stages import VERSIONS
from panorgan.workflow import Run

min_version("9.27")


configfile: "config/config.yaml"


run = Run(config)
settings = run.config
started = time.time()


pathvars:
    results=run.folder,
    logs=f"{run.folder}/logs",
    benchmarks=f"{run.folder}/benchmarks",


wildcard_constraints:
    shard=r"(train|evaluation)-\d+",
    round=r"[1-9]\d*",
    labels=pattern(FUSED),
    variant=pattern(VARIANTS),
    origin=pattern(ORIGINS),
    seed=MEMBER,


include: "rules/cases.smk"
include: "rules/teacher.smk"
include: "rules/pseudo_labels.smk"
include: "rules/gate.smk"
include: "rules/fusion.smk"
include: "rules/student.smk"
include: "rules/prediction.smk"
include: "rules/evaluation.smk"
include: "rules/report.smk"
include: "rules/ablation.smk"
include: "rules/cleaning.smk"


localrules:
    all,
    preflight,
    teacher,
    labels,
    ablation,
    free_preprocessed,


rule all:
    default_target: True
    input:
        rules.write_preflight.output,
        rules.write_report.output,


# What is in the data and what a run will need; looks at every volume, trains nothing.
rule preflight:
    input:
        rules.write_preflight.output,


# The trained teacher with its scores.
rule teacher:
    input:
        rules.score_teacher.output,


# The fused labels that the students of the first round learn from.
rule labels:
    input:
        [
            f"{run.folder}/round-1/fusion/{labels}/{shard}.tsv"
            for number, labels in fused_labels(settings)
            for shard in run.train_shards
            if number == 1
        ],


# What each step of the method brings: students that differ in their labels only, compared.
rule ablation:
    input:
        rules.write_ablation.output,


onsuccess:
    names = ["logs/free_preprocessed.log", "ablation.md", "summary.txt"]
    said = [Path(run.folder, name) for name in names]
    said = [
        path for path in said if path.exists() and path.stat().st_mtime >= started
    ]
    # What the preflight says is of the time before a run: at its end it is stale.
    preflight = Path(run.folder, "logs/write_preflight.log")
    if not said and preflight.exists() and preflight.stat().st_mtime >= started:
        said = [preflight]
    for path in said:
        print(path.read_text(), file=sys.stderr)


onerror:
    # At the very end, below Snakemake's own messages, where a user looks first.
    atexit.register(
        lambda: print(
            report_problems(f"{run.folder}/logs", started), file=sys.stderr
        )
    )
