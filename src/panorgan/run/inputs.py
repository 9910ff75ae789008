"""What the Snakefile and the rules know of the run: its config, its shards and their cases."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from panorgan.cases.corrections import Correction, read_corrections
from panorgan.cases.folders import SUFFIXES
from panorgan.cases.manifest import load_sources, read_manifest
from panorgan.cases.selection import ORGANS, TUMOUR, to_predict
from panorgan.cases.table import Case, check_names, read_cases, shard_names, shard_of
from panorgan.config.labels import load_labels
from panorgan.config.reading import EXPANDED
from panorgan.config.registry import (
    CASES,
    MARGINAL,
    NONE,
    OWN_STAGE1,
    PARTIAL,
    TEACHER,
    VARIANTS,
    first_stage,
)
from panorgan.config.settings import (
    Arm,
    Config,
    Member,
    Recipe,
    ablation_arms,
    fused_labels,
    learns_filled,
    load_config,
    members,
    origins,
    read_config_file,
    students,
    teachers,
    trained_students,
)
from panorgan.io.stamps import STAMPS, Stamp, read_stamps, stamps, unpacked_bytes
from panorgan.io.tables import read_table
from panorgan.problems import Problems
from panorgan.run.layout import Layout, beside
from panorgan.run.needs import (
    CT_VOXEL_BYTES,
    TRAININGS,
    Size,
    memory_mb,
    minutes,
    training_memory_mb,
    training_minutes,
)
from panorgan.run.retries import memory_kills
from panorgan.run.store import key_of


def stop(error: Problems) -> None:
    """End the workflow with one line a problem instead of a traceback."""
    sys.exit("\n".join(map(str, error.problems)))


def see_all_reasons() -> None:
    """Mend what Snakemake overlooks (9.27, snakemake#4166).

    It does not ask whether a job has to run that lies below one that will, as this one has to run
    anyway: but not if what is between them is `ancient`. Its changed parameters would wait for the
    next run, and a report would be written of the old ones.
    """
    from snakemake.dag import DAG

    original = DAG.update_needrun
    if getattr(original, "sees_all", False):
        return

    async def update_needrun(self: DAG, *arguments: Any, **named: Any) -> None:
        self.bfs = lambda *_: ()  # all that would be left out is asked too
        try:
            await original(self, *arguments, **named)
        finally:
            del self.bfs

    update_needrun.sees_all = True
    DAG.update_needrun = update_needrun


def look_again_once() -> None:
    """Mend how often Snakemake looks for jobs that it could start (9.27).

    Every look asks for another one in a second (`--max-jobs-per-timespan`), and so does that one:
    after a hundred jobs there are some tens of looks a second, each of which asks for the size of
    every file that any job which is ready reads. One that is asked for already is enough; and the
    process need not wait for it at its end.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    def look_again(self: JobScheduler, delay: float) -> None:
        asked = self.__dict__.setdefault("looks_asked_for", set())
        if delay in asked:
            return

        def look() -> None:
            asked.discard(delay)
            self._open_jobs.release()

        asked.add(delay)
        timer = threading.Timer(delay, look)
        timer.daemon = True
        timer.start()

    JobScheduler._schedule_reevalutation = look_again


def _round(wildcards: Any) -> int:
    return int(wildcards.get("round", 1))


def _learnt(wildcards: Any) -> str:
    """The labels that a stage of fusion is for."""
    return (wildcards.get("labels") or wildcards.stage1).removesuffix(OWN_STAGE1)


def check_organ_source(source: str) -> None:
    """Problems if `pseudo_labels.organs` is neither a known word nor a folder."""
    words = (CASES, MARGINAL, NONE)
    if source in words:
        return
    cure = f"write {', '.join(words)} or the path of a trained model"
    if not source or not Path(source).is_dir():
        raise Problems.one(f"'{source}' is no folder", cure, case="config", file=ORGANS)
    depths = ("", "*/", "*/*/", "*/*/*/")
    names = ("plans.json", "plans.pkl")
    if not any(any(Path(source).glob(depth + name)) for depth in depths for name in names):
        raise Problems.one(f"'{source}' holds no model", cure, case="config", file=ORGANS)


def check_plan_file(recipe: str, plan: str | None) -> None:
    """Problems if a recipe's `plan` is no file."""
    if plan is not None and not Path(plan).is_file():
        cure = "write the path of a plans.json, or null"
        raise Problems.one(f"'{plan}' is no file", cure, case="config", file=f"{recipe}.plan")


class Run:
    """A checked config and the cases that it names; the case table is read when first needed.

    Parameters
    ----------
    raw
        The config as Snakemake merged it.
    files
        Where it is from: a key that stands twice in a file is refused.

    Attributes
    ----------
    paths
        Where everything of the run lies.
    training, validation, test
        Names of the shards of a split; `shards` has all of them, `labelled` those of training cases
        with a label.
    """

    def __init__(self, raw: Mapping[str, Any], files: Iterable[str | Path] = ()):
        try:
            for path in files:
                read_config_file(path)
            self.config: Config = load_config(raw)
            self.labels = load_labels(self.config.labels)
            self._sources = load_sources(self.config.sources, self.labels)
            check_organ_source(self.config.pseudo_labels.organs)
            for name in ("teacher", "student"):
                check_plan_file(name, getattr(self.config, name).plan)
        except Problems as error:
            stop(error)
        self.paths = Layout(self.config.run)
        counts = self.config.shards
        self.labelled = shard_names("labelled", counts.labelled)
        self.training = [*self.labelled, *shard_names("unlabelled", counts.unlabelled)]
        self.validation = shard_names("validation", counts.validation)
        self.test = shard_names("test", counts.test)
        self.shards = [*self.training, *self.validation, *self.test]

    @staticmethod
    def each(place: str, shards: Iterable[str], end: str = "") -> list[str]:
        """A path for each of some shards; other wildcards stay."""
        return [place.replace("{shard}", shard) + end for shard in shards]

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """The case table, dealt into shards."""
        dealt: dict[str, list[Case]] = {shard: [] for shard in self.shards}
        gc.disable()  # else it would look at all cases again and again: a second of 100,000
        try:
            cases = read_cases(self.config.cases, self.labels)
            names = {case.case for case in cases}
            check_names(self.config.selection.exclude, names, "config", "selection.exclude")
            check_names(self._corrections, names, "", self.config.corrections or "")
        except Problems as error:
            stop(error)
        counts = dict(self.config.shards)
        for case in cases:
            dealt[shard_of(case, counts)].append(case)
        gc.freeze()
        gc.enable()
        return dealt

    def digest(self, *shards: str) -> str:
        """A hash of the case table's lines of some shards: other lines don't rerun their jobs."""
        return key_of([self._digest(shard) for shard in shards])

    @cache  # noqa: B019
    def _digest(self, shard: str) -> str:
        return key_of("\n".join([case.line for case in self.cases[shard]]))

    def written(self, shard: str) -> list[str]:
        """The volumes of a shard that the run itself writes: the demo's."""
        cases = self.cases[shard]  # a missing table is told of before a missing input
        return [path for case in cases for path in case.files] if self.config.phantom else []

    @cache  # noqa: B019
    def stamps(self, shard: str) -> str:
        """A hash of the stamps of a shard's volumes, which the run does not write itself.

        They are no inputs, as Snakemake would look at all of them in every round of scheduling.
        """
        return "" if self.config.phantom else key_of(self._stamps(shard))

    @cache  # noqa: B019
    def _stamps(self, shard: str) -> dict[str, Stamp]:
        known = read_stamps(beside(self.paths.index(shard) + STAMPS, ".store"))
        return stamps((path for case in self.cases[shard] for path in case.files), known)

    def _sizes(self, wildcards: Any) -> list[Size]:
        """Sizes of all images that a job has to do with."""
        shard = wildcards.get("shard")
        return [
            size for name in ([shard] if shard else self.shards) for size in self._sizes_of(name)
        ]

    def _sizes_of(self, shard: str) -> list[Size]:
        """As the shard's index says; before there is one, as the files' lengths tell."""
        table = self.paths.index(shard) + ".tsv"
        if os.path.exists(table):
            return self._indexed(table)
        known = self._stamps(shard)
        return [
            Size((unpacked_bytes(known[case.image]) // CT_VOXEL_BYTES,))
            for case in self.cases[shard]
        ]

    @cache  # noqa: B019
    def _indexed(self, table: str) -> list[Size]:
        return [
            Size(
                tuple(map(int, row["shape_zyx"].split())),
                tuple(map(float, row["spacing_mm_zyx"].split())),
            )
            for row in read_table(table)
            if row["status"] == "ok"
        ]

    def memory(self, wildcards: Any, rulename: str) -> int:
        """MB that a job asks for: once more of it for each of its tries that was killed."""
        recipe = self._recipe(rulename)
        if rulename in TRAININGS:
            asked = training_memory_mb(recipe)
        else:
            asked = memory_mb(rulename, self._sizes(wildcards), recipe.spacing_mm)
        return asked * (1 + memory_kills(rulename, wildcards.items()))

    def runtime(self, wildcards: Any, rulename: str) -> int:
        """Minutes that a job asks for."""
        if rulename in TRAININGS:
            return training_minutes(self._recipe(rulename))
        return minutes(rulename, self._sizes(wildcards))

    def _recipe(self, rulename: str) -> Recipe:
        """Of the network that a job has to do with, if it has."""
        return self.config.teacher if rulename.endswith("teacher") else self.config.student

    def asked(self, output: str) -> str:
        """What `check_cases` has asked of the job that writes an output: to run again."""
        try:
            return Path(self.paths.again(output)).read_text()
        except OSError:
            return ""

    @property
    def classes(self) -> str:
        """A hash of what the class table says."""
        return key_of(self.labels.model_dump(mode="json"))

    @property
    def sources(self) -> str:
        """A hash of what the sources' rules say."""
        return key_of({name: asdict(rule) for name, rule in self._sources.items()})

    @property
    def preprocessed(self) -> dict[str, list[str]]:
        """Every folder of preprocessed data, and the models that learn from it."""
        paths, found = self.paths, {}
        folder = os.path.dirname(paths.teacher_data())
        found[folder] = [paths.teacher_model(member) for member in teachers(self.config)]
        for arm in trained_students(self.config):
            folder = os.path.dirname(paths.student_data(arm.labels, arm.round))
            model = paths.student_model(*arm.place)
            found.setdefault(folder, []).append(model)
        return found

    def fused_shards(self, labels: str) -> list[str]:
        """Shards with cases in some labels: unlabelled ones have no partial label."""
        return self.labelled if labels == PARTIAL else self.training

    @property
    def students(self) -> list[Arm]:
        """The students that are the run's results."""
        return students(self.config)

    @property
    def origins(self) -> list[tuple[str, int]]:
        """Maker and round of all pseudo-labels that are judged for a result of the run."""
        return origins(self.config)

    @property
    def learns_filled(self) -> bool:
        """Whether a student learns labels of a stage 2."""
        return learns_filled(self.config)

    @property
    def first_stages(self) -> list[tuple[int, str]]:
        """Round and name of every stage 1 of the labels that students learn."""
        return sorted({(n, first_stage(name, n)) for n, name in fused_labels(self.config)})

    @property
    def judged(self) -> list[tuple[str, int]]:
        """Kind and round of the pseudo-labels that the gates of `origins` judge."""
        first = ["tumour", "organs"] if self.config.pseudo_labels.predicted else ["tumour"]
        return [
            (kind, number)
            for origin, number in self.origins
            for kind in (first if number == 1 else [origin])
        ]

    @staticmethod
    def origin(wildcards: Any) -> str:
        """Who made the pseudo-labels of a gate or of fused labels: the teacher, or a variant."""
        if _round(wildcards) == 1:
            return TEACHER
        return wildcards.get("origin") or _learnt(wildcards)

    def tumours(self, end: str) -> Callable[[Any], list[str]]:
        """Input function of a stage 1: its tumour pseudo-labels, none for partial labels alone."""
        return lambda wildcards: self._of_fusion("tumour", wildcards, end)

    def organs(self, end: str) -> Callable[[Any], list[str]]:
        """Input function of either stage: its organ pseudo-labels, if a network makes them."""
        return lambda wildcards: self._of_fusion("organs", wildcards, end)

    def _of_fusion(self, kind: str, wildcards: Any, end: str) -> list[str]:
        if _learnt(wildcards) == PARTIAL:
            return []
        return self._pseudo_labels(kind, _round(wildcards), wildcards, end)

    def first(self, end: str) -> Callable[[Any], str]:
        """Input function of a stage 2: the stage 1 that it fills."""

        def path(wildcards: Any) -> str:
            labels = first_stage(wildcards.labels, _round(wildcards))
            return self.paths.fusion(labels, wildcards.round, wildcards.shard) + end

        return path

    def pseudo_labels(self, kind: str, end: str) -> Callable[[Any], list[str]]:
        """Input function of a gate: the `tumour` or `organs` of its round, ended by `end`."""
        return lambda wildcards: self._pseudo_labels(kind, _round(wildcards), wildcards, end)

    def rounds(self, kind: str, end: str) -> Callable[[Any], list[str]]:
        """The same of the round and up to two before, the last first."""
        return lambda wildcards: [
            path
            for number in self._compared(wildcards)
            for path in self._pseudo_labels(kind, number, wildcards, end)
        ]

    @staticmethod
    def _compared(wildcards: Any) -> range:
        number = _round(wildcards)
        return range(number, max(0, number - 3), -1)

    def tumour_values(self, wildcards: Any) -> list[int]:
        """The value of tumours in the pseudo-labels of `rounds`."""
        return [self._tumour_value(number) for number in self._compared(wildcards)]

    def tumour_value(self, wildcards: Any) -> int:
        """The value of tumours in a round's pseudo-labels."""
        return self._tumour_value(_round(wildcards))

    def _tumour_value(self, number: int) -> int:
        return TUMOUR if number == 1 else self.labels.tumour.value

    def _pseudo_labels(self, kind: str, number: int, wildcards: Any, end: str) -> list[str]:
        if number > 1:
            kind = self.origin(wildcards)
        elif kind == "organs" and not self.config.pseudo_labels.predicted:
            return []
        return [self.paths.pseudo_labels(kind, number, wildcards.shard) + end]

    def decisions(self, wildcards: Any) -> list[str]:
        """The gate's decisions on pieces and on cases, for the labels that obey them."""
        if not VARIANTS[_learnt(wildcards)].gated:
            return []
        origin, number = self.origin(wildcards), wildcards.round
        return [self.paths.gate(name, origin, number) for name in ("decisions.tsv", "cases.tsv")]

    @cached_property
    def _corrections(self) -> dict[str, Correction]:
        if self.config.corrections is None:
            return {}
        try:
            found = read_corrections(self.config.corrections, self.labels)
        except Problems as error:
            stop(error)
        return found

    def corrected_states(self, *shards: str) -> str:
        """A hash of what is corrected in the manifest: labels are not, they are for fusion."""
        names = {case.case for shard in shards for case in self.cases[shard]}
        stated = [
            replace(found, label="", file="")
            for name, found in self._corrections.items()
            if name in names
        ]
        changes = [one for one in stated if one != Correction(one.case, note=one.note)]
        return key_of([list(vars(one).values()) for one in changes])

    def corrected_labels(self, wildcards: Any) -> dict[str, str]:
        """Paths of the labels that a person has corrected, by case, for a shard's stage 2.

        None for noise: they would put truth where noise is wanted.
        """
        if not self._corrections or VARIANTS[wildcards.labels].shuffled:
            return {}
        names = (case.case for case in self.cases[wildcards.shard])
        found = (self._corrections.get(name) for name in names)
        return {one.case: one.label for one in found if one and one.label}

    def makers(self, wildcards: Any) -> list[Member]:
        """Members of the network that made a round's pseudo-labels."""
        if _round(wildcards) == 1:
            return [Member(self.config.teacher.seed)]
        return members(self.config.student.seeds[0], self.config.folds)

    def judges(self, wildcards: Any) -> list[Member]:
        """Members that are judged on the training cases in which tumours are known."""
        if _round(wildcards) > 1 or self.config.gate.quantile is None:
            return self.makers(wildcards)
        return members(self.config.teacher.seed, self.config.folds)

    def models(self, who: str, end: str) -> Callable[[Any], list[str]]:
        """Input function: the `makers` or `judges` of a round, ended by `end`."""

        def paths(wildcards: Any) -> list[str]:
            number, found = _round(wildcards), getattr(self, who)(wildcards)
            if number == 1:
                return [self.paths.teacher_model(member) + end for member in found]
            variant = wildcards.origin
            return [self.paths.student_model(variant, one, number - 1) + end for one in found]

        return paths

    def taught(self, wildcards: Any) -> str:
        """The table of a shard's cases that the network of a round's pseudo-labels trained on."""
        if _round(wildcards) == 1:
            return self.paths.teacher_labels(wildcards.shard) + ".tsv"
        before = _round(wildcards) - 1
        return self.paths.fusion(wildcards.origin, before, wildcards.shard) + ".tsv"

    def gpus_to_predict(self, wanted: str, files: Any) -> int:
        """GPUs of a prediction job: none where it has nothing to predict.

        Parameters
        ----------
        wanted
            One of `panorgan.cases.selection.WANTED`.
        files
            The job's input.

        Raises
        ------
        FileNotFoundError
            Where its cases are not dealt yet: Snakemake then asks again before the job starts.
        """
        tables = [files.manifest, *([files.taught] if files.get("taught") else [])]
        for path in tables:
            os.stat(path)
        try:
            entries = read_manifest(files.manifest, self.labels)
            rows = [row for path in tables[1:] for row in read_table(path)]
        except Problems:
            return 1  # the job says what is wrong
        seen = {row["case"] for row in rows if row["status"] == "ok"}
        return int(bool(to_predict(entries, self.labels, wanted, seen, len(files.model_tables))))

    @property
    def phantom_files(self) -> list[str]:
        """Every file of the demo's synthetic cases."""
        from panorgan.cases.phantom import case_files, plans

        known = plans()
        foreign = [c.case for cases in self.cases.values() for c in cases if c.case not in known]
        if foreign:
            cause = f"has cases that are not of the phantom ({', '.join(foreign[:3])}, …)"
            cure = "leave the section `phantom` out of the config: it is for the demo only"
            stop(Problems.one(cause, cure, file=self.config.cases))
        files = [
            str(path)
            for cases in self.cases.values()
            for case in cases
            for path in case_files(case).values()
        ]
        # Snakemake deletes them before they are written, whatever they are.
        here = os.path.join(os.getcwd(), "")
        for path in files:
            inside = os.path.abspath(path).startswith(here) and path.endswith(SUFFIXES)
            if not inside or {*EXPANDED} & {*path}:
                cause = f"names {path}, and a phantom is written into volumes of this folder only"
                cure = "take config/demo_cases.tsv as it is"
                stop(Problems.one(cause, cure, file=self.config.cases))
        return files

    @property
    def ablation(self) -> dict[str, list[str]]:
        """The scores of each arm of the ablation, one a seed."""
        return {
            name: [self.paths.results("cases.csv", *arm.place, "validation") for arm in found]
            for name, found in ablation_arms(self.config).items()
        }
