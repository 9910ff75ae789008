"""The map of a run's files: every path below ``results/RUN`` is made here and nowhere else.

What a method makes of its arguments, it makes of Snakemake's wildcards too, which are their
defaults: ``{shard}``, ``{round}``, ``{labels}``, ``{variant}``, ``{origin}``, ``{seed}``. Where a
stage publishes shards, the method gives the shard's folder; its tables stand beside it, with an
ending: ``.tsv`` has a row a case.
"""

from pathlib import Path

RESULTS = "results"


class Layout:
    """Where everything of a run lies.

    Parameters
    ----------
    run
        Its name, or its folder as a `Path`.
    """

    def __init__(self, run: str | Path):
        self.root = str(run) if isinstance(run, Path) else f"{RESULTS}/{run}"
        self.logs = f"{self.root}/logs"
        self._cases = f"{self.root}/cases"
        self.case_list = f"{self._cases}/manifest.tsv"
        self.excluded = f"{self._cases}/excluded.tsv"
        self.suspects = f"{self._cases}/suspects.tsv"
        self.corrected = f"{self._cases}/corrected.tsv"
        self.repaired = f"{self._cases}/repaired.tsv"
        self.organs_checked = f"{self._cases}/organs.txt"
        self.class_table = f"{self._cases}/labels.yaml"
        self.config = f"{self._cases}/config.yaml"
        self.preflight = f"{self._cases}/preflight.html"
        self.report = f"{self.root}/report.html"
        self.picture = f"{self.root}/overlay.png"
        self.summary = f"{self.root}/summary.txt"
        self.ablation = f"{self.root}/ablation"
        self._teacher = f"{self.root}/teacher"

    # Cases

    def index(self, shard: str = "{shard}") -> str:
        """What every volume is; with copies of those whose headers could be mended."""
        return f"{self._cases}/index/{shard}"

    def manifest(self, shard: str = "{shard}") -> str:
        """The shard's part of the manifest."""
        return f"{self._cases}/manifest/{shard}.tsv"

    @staticmethod
    def again(output: str) -> str:
        """Asks the job that writes an output to run again: what is asked is a parameter of it."""
        return f"{beside(output, '.store')}.again"

    # The teacher

    def teacher_labels(self, shard: str = "{shard}") -> str:
        """Tumours of the selected cases."""
        return f"{self._teacher}/labels/{shard}"

    def teacher_plan(self, name: str) -> str:
        """`name` is plans.json or dataset.json."""
        return f"{self._teacher}/{name}"

    def teacher_data(self, shard: str = "{shard}") -> str:
        """Preprocessed cases."""
        return f"{self._teacher}/preprocessed/{shard}"

    def teacher_model(self, seed: object = "{seed}") -> str:
        """Its table is beside it."""
        return f"{self._teacher}/seed-{seed}/model"

    def teacher_predictions(self, seed: object = "{seed}", shard: str = "{shard}") -> str:
        """Tumours of validation cases."""
        return f"{self._teacher}/seed-{seed}/predictions/{shard}"

    def teacher_scores(self, seed: object, name: str) -> str:
        """`name` is cases.csv, lesions.csv or summary.json."""
        return f"{self._teacher}/seed-{seed}/scores/{name}"

    # Pseudo-labels and their gate

    def pseudo_labels(
        self, kind: str = "{origin}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """`kind` is tumour or organs in the first round, later the variant that made them."""
        return f"{self.root}/round-{round}/pseudo_labels/{kind}/{shard}"

    def known_tumours(
        self, origin: str = "{origin}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Predicted where the truth is known."""
        return f"{self.root}/round-{round}/pseudo_labels/known/{origin}/{shard}"

    @property
    def organ_model(self) -> str:
        """A model that was given, taken over."""
        return f"{self.root}/round-1/pseudo_labels/organ_model"

    def gate(self, name: str, origin: str = "{origin}", round: object = "{round}") -> str:
        """`name` is decisions.tsv, cases.tsv or summary.json."""
        return f"{self.root}/round-{round}/gate/{origin}/{name}"

    def components(
        self, origin: str = "{origin}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Of the pseudo-labels that are judged."""
        return f"{self.root}/round-{round}/gate/{origin}/{shard}"

    def known_components(
        self, origin: str = "{origin}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Of the tumours predicted where the truth is known."""
        return f"{self.root}/round-{round}/gate/{origin}/known/{shard}"

    # Labels to learn

    def fusion(
        self, labels: str = "{labels}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Labels, where each voxel is from, and tables of what was fused."""
        return f"{self.root}/round-{round}/fusion/{labels}/{shard}"

    # Students

    def histograms(
        self, labels: str = "{labels}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Intensities of every class."""
        return f"{self.root}/round-{round}/student/{labels}/histograms/{shard}"

    def student_plan(self, name: str, labels: str = "{labels}", round: object = "{round}") -> str:
        """`name` is plans.json or dataset.json."""
        return f"{self.root}/round-{round}/student/{labels}/{name}"

    def student_data(
        self, labels: str = "{labels}", round: object = "{round}", shard: str = "{shard}"
    ) -> str:
        """Preprocessed cases."""
        return f"{self.root}/round-{round}/student/{labels}/preprocessed/{shard}"

    def student_model(
        self, variant: str = "{variant}", seed: object = "{seed}", round: object = "{round}"
    ) -> str:
        """Its table is beside it."""
        return f"{self.root}/round-{round}/student/{variant}/seed-{seed}/model"

    def predictions(
        self,
        variant: str = "{variant}",
        seed: object = "{seed}",
        round: object = "{round}",
        shard: str = "{shard}",
    ) -> str:
        """Of the validation and test cases."""
        return f"{self.root}/round-{round}/predictions/{variant}/seed-{seed}/{shard}"

    def scores(
        self,
        variant: str = "{variant}",
        seed: object = "{seed}",
        round: object = "{round}",
        shard: str = "{shard}",
    ) -> str:
        """Of a shard; only tables."""
        return f"{self.root}/round-{round}/scores/{variant}/seed-{seed}/{shard}"

    def results(
        self,
        name: str,
        variant: str = "{variant}",
        seed: object = "{seed}",
        round: object = "{round}",
        split: str = "{split}",
    ) -> str:
        """Of a split; `name` is cases.csv, lesions.csv or summary.json."""
        return f"{self.root}/round-{round}/scores/{variant}/seed-{seed}/{split}/{name}"


def beside(output: str | Path, kind: str) -> Path:
    """The counterpart of a file in another folder of its run: ``.store`` has finished work."""
    results, run, *rest = Path(output).parts
    return Path(results, run, kind, *rest)


def benchmark_of(log: str | Path) -> Path:
    """Where stands what the job took that writes a log."""
    results, run, _, *rest = Path(log).parts
    return Path(results, run, "benchmarks", *rest).with_suffix(".tsv")
