"""Training: the same weights however it is interrupted, schedule, loss, augmentation."""

import errno
import io
import json
import multiprocessing
import os
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.resample_augmentations import (
    augment_linear_downsampling_scipy,
)
from batchgenerators.augmentations.utils import (
    create_zero_centered_coordinate_mesh,
    elastic_deform_coordinates,
)
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from fault_rows import fault_rows
from scipy.ndimage import map_coordinates, spline_filter
from toys import EPOCHS, ITERATIONS, checksum, curve, plan_of, run, student, teacher, write_case

from panorgan.config.settings import Augmentation, Optimizer
from panorgan.nnunet.training import batches, checkpoints
from panorgan.nnunet.training import train as train_module
from panorgan.nnunet.training.augmentation import (
    LowResolution,
    Spatial,
    acts_in_plane,
    draw_factor,
    initial_patch_size,
    spline_matrix,
    training_transforms,
)
from panorgan.nnunet.training.batches import Batches, in_order, own_random_numbers
from panorgan.nnunet.training.train import TrainingInterrupted
from panorgan.nnunet.training.trainer import Trainer, learning_rate, make_trainer
from panorgan.problems import Problems, Stop

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")
LONG = 12
"""Iterations of an epoch that lasts long enough to be hit by a signal."""

STILL = Augmentation().model_dump() | {
    name: 0.0 for name in Augmentation.model_fields if name.startswith("p_")
}
"""An augmentation that changes nothing."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Path]:
    """Training cases in two folders, as shards are."""
    root = tmp_path_factory.mktemp("cases")
    folders = {f"case-{i}": root / f"shard-{i % 2}" for i in range(4)}
    for seed, (case, folder) in enumerate(folders.items()):
        write_case(folder, case, seed)
    return folders


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("validation")
    write_case(folder, "look", 9)
    return {"look": folder}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cases, looked_at) -> Path:
    """The model of a training that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole"), cases, looked_at)


@pytest.fixture(scope="module")
def whole_of_ten(tmp_path_factory, cases) -> Path:
    """The model of an undisturbed training of ten epochs."""
    return run(tmp_path_factory.mktemp("ten"), cases, recipe=teacher(epochs=10))


@pytest.fixture(scope="module")
def long(tmp_path_factory, cases) -> Path:
    """The model of an undisturbed training that lasts long enough to be hit by a signal."""
    return run(tmp_path_factory.mktemp("long"), cases, recipe=teacher(iterations=LONG))


class TestRepeatable:
    def test_again(self, whole, tmp_path, cases, looked_at):
        again = run(tmp_path, dict(reversed(cases.items())), looked_at)
        assert checksum(again) == checksum(whole)
        assert curve(again) == curve(whole)

    def test_another_seed(self, whole, tmp_path, cases):
        assert checksum(run(tmp_path, cases, seed=1)) != checksum(whole)

    @pytest.mark.parametrize("seen", ["none", "a training case"])
    def test_validation_changes_nothing(self, seen, whole, tmp_path, cases):
        validation = {} if seen == "none" else {"case-0": cases["case-0"]}
        model = run(tmp_path, cases, validation)
        assert checksum(model) == checksum(whole)
        assert (curve(model)[0]["validation_loss"] == "") == (seen == "none")

    def test_workers_make_the_same_batches(self, whole, tmp_path, cases, looked_at):
        model = run(tmp_path, cases, looked_at, teacher(workers=2))
        assert checksum(model) == checksum(whole)

    def test_the_global_generators_go_on(self):
        def draw():
            return np.random.uniform(), torch.rand(1).item()

        with own_random_numbers(3, 1):
            inside = draw()
        with own_random_numbers(3, 1):
            before = np.random.get_state()[1].copy()
            assert draw() == inside
        torch.manual_seed(5)
        np.random.seed(5)
        expected = draw(), draw()
        torch.manual_seed(5)
        np.random.seed(5)
        first = draw()
        with own_random_numbers(3, 2):
            assert draw() != inside
        assert (first, draw()) == expected
        assert (before != np.random.get_state()[1]).any()


class TestInterrupted:
    """Weights and curve are those of the undisturbed training."""

    def assert_same(self, model, whole):
        assert checksum(model) == checksum(whole)
        assert curve(model) == curve(whole)
        assert curve(model.parent) == curve(whole)

    @pytest.mark.parametrize(
        ("step", "after", "name", "number"),
        [
            ("train_step", 1, "checkpoint-0000-00001.pt", signal.SIGTERM),
            ("train_step", 6, "checkpoint-0001-00002.pt", signal.SIGTERM),
            ("train_step", 8, "checkpoint-0001-00004.pt", signal.SIGUSR1),
            ("validation_step", 3, "checkpoint-0001-00004.pt", signal.SIGINT),
        ],
    )
    def test_by_a_signal(
        self, step, after, name, number, whole, tmp_path, cases, looked_at, monkeypatch
    ):
        handlers = signal.getsignal(number)
        original, calls = getattr(Trainer, step), []

        def interrupted(trainer, batch):
            calls.append(1)
            if len(calls) == after:
                for _ in range(1 if number == signal.SIGINT else 2):
                    os.kill(os.getpid(), number)
            return original(trainer, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, step, interrupted)
            with pytest.raises(TrainingInterrupted, match=r"epoch \d of 3 after batch \d of 4"):
                run(tmp_path, cases, looked_at)
        assert len(calls) == after
        assert signal.getsignal(number) == handlers
        assert (tmp_path / name).exists()
        self.assert_same(run(tmp_path, cases, looked_at), whole)

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_in_another_process(self, number, workers, long, tmp_path, cases):
        recipe = teacher(iterations=LONG, workers=workers)

        def train_there():
            try:
                run(tmp_path / "state", cases, recipe=recipe)
            except TrainingInterrupted:
                os._exit(7)

        process = FORK.Process(target=train_there)
        process.start()
        wait_for(tmp_path / "state" / "checkpoint-0001.pt")
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == (7 if number == signal.SIGTERM else -signal.SIGKILL)
        steps = []

        def counted(trainer, batch, original=Trainer.train_step):
            steps.append(1)
            return original(trainer, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", counted)
            resumed = run(tmp_path / "state", cases, recipe=recipe)
        assert len(steps) < (EPOCHS - 1) * LONG + 1
        self.assert_same(resumed, long)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_killed_at_any_moment(self, workers, whole_of_ten, tmp_path, cases):
        """Again and again, until it gets through: ten epochs in many pieces."""
        recipe = teacher(epochs=10, workers=workers)
        random = np.random.default_rng()
        state, kills = tmp_path / "state", 0
        while not (state / "model").exists():
            process = FORK.Process(target=run, args=(state, cases), kwargs={"recipe": recipe})
            process.start()
            # Each try is given more time, so that the test comes to an end.
            process.join(random.uniform(0.1, 0.6) + 0.1 * kills)
            kills += process.is_alive()
            process.kill()
            process.join()
        assert kills
        self.assert_same(run(state, cases, recipe=recipe), whole_of_ten)

    def test_four_epochs_and_six(self, whole_of_ten, tmp_path, cases):
        recipe = teacher(epochs=10)
        self.stop_after_epochs(4, tmp_path, cases, {}, recipe)
        assert (tmp_path / "checkpoint-0004.pt").exists()
        self.assert_same(run(tmp_path, cases, recipe=recipe), whole_of_ten)

    @pytest.mark.parametrize("after", [0, 100, 5000])
    def test_killed_while_a_checkpoint_is_written(self, after, whole, tmp_path, cases, looked_at):
        def save_part(content, file, original=torch.save):
            if content["epoch"] < 2:
                return original(content, file)
            whole_file = io.BytesIO()
            original(content, whole_file)
            file.write(whole_file.getvalue()[:after])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        def train_there():
            torch.save = save_part
            run(tmp_path, cases, looked_at)

        assert exit_code(train_there) == -signal.SIGKILL
        assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-0001.pt"]
        assert [path.stat().st_size for path in tmp_path.glob(".checkpoint*")] == [after]
        self.assert_same(run(tmp_path, cases, looked_at), whole)
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("step", ["save_model", "csv_of", "rename"])
    def test_killed_while_the_model_is_written(self, step, whole, tmp_path, cases, looked_at):
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        def train_there():
            if step == "rename":
                Path.rename = die
            else:
                setattr(train_module, step, die)
            run(tmp_path, cases, looked_at)

        assert exit_code(train_there) == -signal.SIGKILL
        assert not (tmp_path / "model").exists()
        self.assert_same(run(tmp_path, cases, looked_at), whole)
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
    def test_damaged_checkpoint(self, damage, whole, tmp_path, cases, looked_at, capsys):
        self.stop_after_epochs(2, tmp_path, cases, looked_at)
        newest = tmp_path / "checkpoint-0002.pt"
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1
        newest.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])
        self.assert_same(run(tmp_path, cases, looked_at), whole)
        text = capsys.readouterr().out
        assert "checkpoint-0002.pt is damaged" in text
        assert "going on from checkpoint-0001.pt" in text

    def test_killed_before_the_model_is_there(self, whole, tmp_path, cases, looked_at):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_module, "csv_of", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, cases, looked_at)
        assert not (tmp_path / "model").exists()
        self.assert_same(run(tmp_path, cases, looked_at), whole)

    def stop_after_epochs(self, epochs, state, cases, validation, recipe=None):
        """Kill a training once the checkpoint of an epoch is there."""

        def stop_later(trainer, progress, *rest, original=train_module._save):
            path = original(trainer, progress, *rest)
            if progress.epoch == epochs:
                os.kill(os.getpid(), signal.SIGKILL)
            return path

        def train_there():
            train_module._save = stop_later
            run(state, cases, validation, recipe)

        assert exit_code(train_there) == -signal.SIGKILL

    def test_precision_and_place_of_augmentation_stay(self, tmp_path, cases):
        self.stop_after_epochs(1, tmp_path, cases, {})
        model = run(tmp_path, cases, recipe=teacher(precision="bf16", augment_on="device"))
        card = json.loads((model / "card.json").read_text())
        assert (card["precision"], card["augment_on"]) == ("fp32", "workers")

    @pytest.mark.parametrize("recipe", [teacher, student])
    def test_augmented_on_the_device(self, recipe, whole, tmp_path, cases):
        there = recipe(augment_on="device")
        expected = checksum(run(tmp_path / "undisturbed", cases, recipe=there))
        assert expected != checksum(whole)
        self.stop_after_epochs(1, tmp_path / "state", cases, {}, recipe=there)
        resumed = run(tmp_path / "state", cases, recipe=recipe(augment_on="device", workers=1))
        assert checksum(resumed) == expected
        assert json.loads((resumed / "card.json").read_text())["augment_on"] == "device"


def slowly(step):
    """A training step that takes its time."""

    def slow(trainer, batch):
        time.sleep(0.05)
        return step(trainer, batch)

    return slow


def exit_code(target) -> int:
    """Run a function in another process; minus the signal's number if one ended it."""
    process = FORK.Process(target=target)
    process.start()
    process.join()
    return process.exitcode


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


class TestState:
    def test_what_is_left(self, whole, cases):
        state = whole.parent
        names = {path.name for path in state.iterdir()}
        files = {"checkpoint-0002.pt", "checkpoint-0003.pt", "progress.csv", "curve.png"}
        assert names == files | {"model"}
        card = json.loads((whole / "card.json").read_text())
        assert (card["cases"], card["epochs"], card["seed"]) == (4, EPOCHS, 0)
        assert card["hours"] > 0
        assert (whole / "curve.png").stat().st_size > 5000

    def test_curve(self, whole):
        rows = curve(whole)
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        columns = (
            "epoch train_loss validation_loss dice_liver dice_tumour learning_rate peak_gpu_mb"
        )
        assert list(rows[0]) == columns.split()
        assert all(0 <= float(row["dice_tumour"]) <= 1 for row in rows)

    def test_nothing_elsewhere(self, tmp_path, cases, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("nnUNet_wandb_enabled", "1")
        environment = dict(os.environ)
        run(tmp_path / "state", cases, recipe=teacher(epochs=1))
        assert dict(os.environ) == environment
        assert [path.name for path in tmp_path.iterdir()] == ["state"]

    def test_a_finished_training_is_not_repeated(self, whole, monkeypatch, cases):
        monkeypatch.setattr(train_module, "make_trainer", None)
        assert run(whole.parent, cases) == whole

    def test_checkpoints_are_rare_if_told(self, tmp_path, cases, monkeypatch):
        saved = []
        monkeypatch.setattr(train_module, "save_checkpoint", lambda *a: saved.append(a[2:4]))
        run(tmp_path, cases, recipe=teacher(checkpoint_every_s=600.0))
        assert saved == [(EPOCHS, 0)]

    def test_the_log(self, tmp_path, cases, looked_at, capsys):
        run(tmp_path, cases, looked_at, teacher(epochs=1))
        text = capsys.readouterr().out
        assert "no GPU: training on the CPU" in text or torch.cuda.is_available()
        for part in ("epoch 1 of 1: loss ", "validation ", "Dice organs ", "Dice tumour ", "left"):
            assert part in text

    def test_no_validation_batches(self, tmp_path, cases, looked_at):
        model = run(tmp_path, cases, looked_at, teacher(epochs=1, validation_iterations=0))
        assert curve(model)[0]["validation_loss"] == curve(model)[0]["dice_tumour"] == ""

    def test_newest_checkpoint_by_number(self, tmp_path):
        for epoch, iteration in ((9999, 0), (10000, 0), (10000, 12)):
            path = checkpoints.save_checkpoint(tmp_path, {"at": epoch}, epoch, iteration)
        assert path.name == "checkpoint-10000-00012.pt"
        assert len(list(tmp_path.iterdir())) == 2
        assert checkpoints.load_checkpoint(tmp_path) == {"at": 10000}

    def test_full_disk(self, tmp_path):
        checkpoints.save_checkpoint(tmp_path, {"weights": torch.zeros(10)}, 1, 0)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(Stop, match=r"checkpoint-0002\.pt: a file may not become so large"):
                checkpoints.save_checkpoint(tmp_path, {"weights": torch.zeros(10**6)}, 2, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0001.pt"]


class TestProblems:
    def test_nan_loss(self, tmp_path, cases, monkeypatch):
        original, losses = Trainer.train_step, []

        def explode(trainer, batch):
            losses.append(original(trainer, batch))
            return float("nan") if len(losses) == 6 else losses[-1]

        monkeypatch.setattr(Trainer, "train_step", explode)
        with pytest.raises(Problems, match=r"NaN in epoch 2, batch 2"):
            run(tmp_path, cases)
        assert (tmp_path / "checkpoint-0001.pt").exists()
        assert not (tmp_path / "model").exists()

    def test_spoilt_weights_are_not_kept(self, tmp_path, cases, monkeypatch):
        """An update may overflow after a loss that is a number."""
        original, steps = Trainer.train_step, []

        def spoil(trainer, batch):
            loss = original(trainer, batch)
            steps.append(loss)
            if len(steps) == 2 * ITERATIONS:
                next(trainer.network.parameters()).data[0] = float("inf")
            return loss

        monkeypatch.setattr(Trainer, "train_step", spoil)
        with pytest.raises(Problems, match=r"NaN in epoch 3, batch 1.*begins a new training"):
            run(tmp_path, cases)
        assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint-0001.pt"]

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
    def test_killed_loader(self, number, whole, tmp_path, cases, looked_at, monkeypatch, capfd):
        main, original = os.getpid(), batches.load

        def killed(folder, case):
            if (
                os.getpid() != main
                and case == "case-2"
                and (tmp_path / "checkpoint-0001.pt").exists()
            ):
                os.kill(os.getpid(), number)
            return original(folder, case)

        recipe = teacher(workers=1)
        with monkeypatch.context() as patch:
            patch.setattr(batches, "load", killed)
            # So that the loader does not read all cases ahead before there is a checkpoint.
            patch.setattr(Trainer, "train_step", slowly(Trainer.train_step))
            with pytest.raises(Problems) as caught:
                run(tmp_path, cases, looked_at, recipe)
        (problem,) = caught.value.problems
        assert problem.case == "case-2"
        # Which of torch's two watches comes first is chance.
        assert re.search("was killed by signal|exited unexpectedly", problem.cause)
        assert "shared memory" in problem.cure
        assert "lower training.workers" in problem.cure
        model = run(tmp_path, cases, looked_at, recipe)
        assert checksum(model) == checksum(whole)
        assert curve(model) == curve(whole)

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize(
        ("error", "cause"),
        [
            (MemoryError(), "the computer's memory does not suffice"),
            (ZeroDivisionError("by zero"), "unexpected ZeroDivisionError in loading: by zero"),
        ],
    )
    def test_loading_fails(self, error, cause, workers, tmp_path, cases, monkeypatch):
        def fail(transforms, **_):
            raise error

        monkeypatch.setattr(ComposeTransforms, "__call__", fail)
        only = {"case-3": cases["case-3"]}
        with pytest.raises(Problems) as caught:
            run(tmp_path, only, recipe=teacher(workers=workers))
        (problem,) = caught.value.problems
        assert (problem.case, problem.cause) == ("case-3", cause)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
            (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "GPU"),
            (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "GPU"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "GPU"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "computer"),
            (MemoryError(), "computer"),
            (OSError(errno.ENOMEM, "Cannot allocate memory"), "computer"),
        ],
    )
    def test_full_memory(self, error, expected, tmp_path, cases, monkeypatch):
        def fail(trainer, batch):
            raise error

        monkeypatch.setattr(Trainer, "train_step", fail)
        with pytest.raises(Problems, match=f"the {expected}'s memory does not suffice") as caught:
            run(tmp_path, cases)
        assert "batch_size" in caught.value.problems[0].cure

    def test_other_errors_keep_their_traceback(self, tmp_path, cases, monkeypatch):
        def fail(trainer, batch):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(Trainer, "train_step", fail)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            run(tmp_path, cases)

    @pytest.mark.fault("disk-full-training")
    def test_full_disk_while_training(self, tmp_path, cases, monkeypatch):
        def full(content, file, original=torch.save):
            if content["epoch"] == 2:
                file.write(b"part")
                raise OSError(errno.ENOSPC, "No space left on device")
            original(content, file)

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(Stop) as caught:
            run(tmp_path, cases)
        fault_rows()["disk-full-training"].check(str(caught.value))
        assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint-0001.pt"]
        assert not list(tmp_path.glob(".*"))

    def test_a_training_that_was_taken_over_writes_nothing(self, tmp_path, cases):
        """Neither the curve nor a checkpoint nor the model, once `check` fails."""
        checks = []

        def check():
            checks.append({path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
            if len(checks) == 4:
                raise Problems.one("taken over")

        with pytest.raises(Problems, match="taken over"):
            run(tmp_path, cases, check=check)
        left = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        temporary = [name for name in checks[-1] if name.startswith(".checkpoint-0002")]
        assert len(temporary) == 1
        assert left == {name: at for name, at in checks[-1].items() if name not in temporary}
        assert "checkpoint-0001.pt" in left

    @pytest.mark.parametrize("spoilt", ["data", "gradient"])
    def test_a_spoilt_step_is_nan(self, spoilt, trainer_of, cases):
        trainer = trainer_of(teacher())
        batch = trainer.training_batches(cases, 0)[0]
        if spoilt == "data":
            batch["data"][0, 0, 0, 0] = float("inf")
        else:
            weight = next(iter(trainer.network.parameters()))
            weight.register_hook(lambda gradient: gradient * float("inf"))
        trainer.network.train()
        assert np.isnan(float(trainer.train_step(batch)))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_broken_case(self, workers, tmp_path, cases):
        for case in cases:
            write_case(tmp_path / "data", case, 0)
        (tmp_path / "data" / "case-2.b2nd").write_bytes(b"nonsense")
        broken = {case: tmp_path / "data" for case in cases}
        with pytest.raises(Problems) as caught:
            run(tmp_path / "state", broken, recipe=teacher(workers=workers))
        (problem,) = caught.value.problems
        assert problem.case == "case-2"
        assert "cannot be read" in problem.cause

    def test_no_loader_outlives_its_training(self, tmp_path, cases, looked_at, monkeypatch):
        """Loaders ignore signals: left alone, they would keep the process from ending."""
        original, steps = Trainer.train_step, []

        def fail(trainer, batch):
            steps.append(original(trainer, batch))
            if len(steps) == ITERATIONS + 2:
                assert len(multiprocessing.active_children()) == 2
                raise RuntimeError("a step that fails")
            return steps[-1]

        monkeypatch.setattr(Trainer, "train_step", fail)
        # What is caught holds on to all that failed.
        with pytest.raises(RuntimeError, match="a step that fails") as caught:
            run(tmp_path, cases, looked_at, teacher(workers=1))
        assert caught.tb
        assert not multiprocessing.active_children()


@pytest.fixture
def trainer_of(tmp_path):
    def make(recipe: dict, ignore: bool = False) -> Trainer:
        trainer = make_trainer(*plan_of(recipe, ignore), CPU, tmp_path)
        trainer.initialize("fp32")
        return trainer

    return make


class TestSteps:
    def test_rates(self):
        settings = teacher(
            epochs=10, optimizer=Optimizer(learning_rate=0.1, poly_power=0.9, warmup_iterations=6)
        )["training"]
        rates = [learning_rate(settings, epoch, i) for epoch in range(2) for i in range(4)]
        second = 0.1 * 0.9**0.9
        expected = [0.1 / 6, 0.2 / 6, 0.3 / 6, 0.4 / 6, second * 5 / 6, second, second, second]
        assert rates == pytest.approx(expected)
        assert learning_rate(settings, 9, 0) == pytest.approx(0.1 * 0.1**0.9)

    def test_the_rate_reaches_the_optimizer(self, tmp_path, cases, monkeypatch):
        original, rates = Trainer.train_step, []

        def noted(trainer, batch):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            return original(trainer, batch)

        monkeypatch.setattr(Trainer, "train_step", noted)
        run(tmp_path, cases)
        settings = teacher()["training"]
        pairs = [(epoch, i) for epoch in range(EPOCHS) for i in range(ITERATIONS)]
        assert rates == [learning_rate(settings, *pair) for pair in pairs]

    def test_optimizers(self, trainer_of):
        adamw = Optimizer(name="adamw", learning_rate=3e-3, weight_decay=0.01)
        made = trainer_of(teacher(optimizer=adamw)).optimizer
        assert isinstance(made, torch.optim.AdamW)
        assert (made.defaults["lr"], made.defaults["weight_decay"]) == (3e-3, 0.01)
        made = trainer_of(teacher(optimizer=Optimizer())).optimizer
        assert isinstance(made, torch.optim.SGD)
        wanted = {"lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
        assert wanted.items() <= made.defaults.items()

    def test_gradients_are_clipped(self, trainer_of, cases):
        clip = Optimizer(learning_rate=1.0, momentum=0.0, weight_decay=0.0, gradient_clip=1e-3)
        trainer = trainer_of(teacher(optimizer=clip))
        before = [p.detach().clone() for p in trainer.network.parameters()]
        trainer.train_step(trainer.training_batches(cases, 0)[0])
        steps = [b - p.detach() for b, p in zip(before, trainer.network.parameters(), strict=True)]
        assert torch.cat([s.flatten() for s in steps]).norm() == pytest.approx(1e-3, rel=1e-2)

    def test_loss(self, trainer_of):
        recipe = student()
        recipe["network"]["features"] = [4, 4, 4, 4]
        recipe["network"]["kernel_sizes"] = [[3, 3, 3]] * 4
        recipe["network"]["strides"] = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
        loss = trainer_of(recipe).loss
        assert loss.weights == pytest.approx((2 / 3, 1 / 3, 0))
        assert (loss.batch_dice, loss.ignore) == (False, 3)
        assert trainer_of(teacher(batch_dice=True)).loss.batch_dice is True

    def test_ignored_voxels_have_no_gradient(self, trainer_of):
        trainer = trainer_of(student(), ignore=True)
        assert trainer.network(torch.zeros(1, 1, 4, 16, 16))[0].shape[1] == 3
        generator = torch.Generator().manual_seed(0)
        sizes = [(4, 16, 16), (4, 8, 8)]
        target = [torch.randint(0, 4, (1, 1, *size), generator=generator) for size in sizes]
        logits = [
            torch.randn(1, 3, *size, generator=generator, requires_grad=True) for size in sizes
        ]
        trainer.loss(logits, target).backward()
        gradient, ignored = logits[0].grad.abs().sum(1, keepdim=True), target[0] == 3
        assert ignored.sum() > 100
        assert gradient[ignored].max() == 0
        assert gradient[~ignored].min() > 0

    def test_validation_counts(self, trainer_of):
        trainer = trainer_of(student(), ignore=True)
        truth = torch.zeros(1, 1, 4, 16, 16, dtype=torch.int16)
        truth[..., :4], truth[..., 4:6], truth[..., 12:] = 1, 2, 3
        predicted = torch.zeros(1, 1, 4, 16, 16, dtype=torch.int64)
        predicted[..., 2:5], predicted[..., 14:] = 1, 1
        logits = torch.zeros(1, 3, 4, 16, 16).scatter_(1, predicted, 9.0)
        trainer._forward = lambda data: [logits, logits[..., ::2, ::2]]
        batch = {"data": logits, "target": [truth, truth[..., ::2, ::2]]}
        _, counts = trainer.validation_step(batch)
        column = 4 * 16
        assert counts.tolist() == [[2 * column, 0], [1 * column, 0], [2 * column, 2 * column]]

    def test_unknown_classes_do_not_count(self, trainer_of):
        trainer = trainer_of(student())
        truth = torch.zeros(2, 1, 4, 16, 16, dtype=torch.int16)
        logits = torch.zeros(2, 3, 4, 16, 16)
        logits[:, 2, ..., :3] = 9.0
        trainer._forward = lambda data: [logits, logits[..., ::2, ::2]]
        batch = {"data": logits, "target": [truth, truth[..., ::2, ::2]]}
        looked, counts = trainer.validation_step(batch)
        assert counts.tolist() == [[0, 0], [0, 2 * 3 * 64], [0, 0]]
        batch["unknown"] = torch.tensor([[False, False, True], [False, False, False]])
        marginal, counts = trainer.validation_step(batch)
        assert counts.tolist() == [[0, 0], [0, 3 * 64], [0, 0]]
        assert marginal < looked

    @pytest.mark.parametrize("recipe", [teacher, student])
    def test_learns(self, recipe, tmp_path, cases, looked_at):
        settings = recipe(
            epochs=4,
            iterations=15,
            oversample_foreground=0.5,
            augmentation=Augmentation(p_rotation=0.5, p_scaling=0.5, rotation_degrees=15.0),
        )
        rows = curve(run(tmp_path, cases, looked_at, settings))
        losses = [float(row["train_loss"]) for row in rows]
        assert losses[-1] < 0.7 * losses[0]
        assert float(rows[-1]["dice_liver"]) > 0.6

    @pytest.mark.parametrize(("recipe", "patch"), [(teacher, [17, 15]), (student, [5, 15, 18])])
    def test_a_patch_of_any_size(self, recipe, patch, trainer_of, cases):
        settings = recipe()
        settings["patch_size"] = patch
        trainer = trainer_of(settings)
        batch = trainer.training_batches(cases, 0)[0]
        outputs = trainer.network(batch["data"])
        assert [x.shape[2:] for x in outputs] == [y.shape[2:] for y in batch["target"]]
        assert tuple(outputs[0].shape[2:]) == tuple(patch)
        assert np.isfinite(float(trainer.train_step(batch)))

    @pytest.mark.parametrize(("size", "share"), [(1, 0.5), (4, 0.25)])
    def test_share_of_foreground(self, size, share, trainer_of, cases):
        recipe = teacher(oversample_foreground=share)
        recipe["batch_size"] = size
        loader = trainer_of(recipe).training_batches(cases, 0)._loader
        chosen = [loader.get_do_oversample(i % size) for i in range(400)]
        assert np.mean(chosen) == pytest.approx(share, abs=0.1)


class TestBatches:
    def test_shapes(self, trainer_of, cases):
        recipe = student(augmentation=Augmentation(mirror_axes=[0]))
        batches = trainer_of(recipe).training_batches(cases, 0)
        batch = batches[5]
        assert batch["data"].shape == (1, 1, 4, 16, 16)
        assert batch["data"].dtype == torch.float32
        assert [tuple(target.shape) for target in batch["target"]] == [
            (1, 1, 4, 16, 16),
            (1, 1, 4, 8, 8),
        ]
        assert set(batch["target"][0].unique().tolist()) <= {0, 1, 2}
        assert torch.equal(batches[5]["data"], batch["data"])
        assert not torch.equal(batches[6]["data"], batch["data"])

    def test_augmented_later(self, trainer_of, cases):
        """Loaders hand out larger patches, and the batch's key decides what becomes of them."""
        trainer = trainer_of(student() | {"batch_size": 2})
        trainer.augment_on = "device"
        unknown = {case: [1] for case in cases}
        batches = trainer.training_batches(cases, 3, unknown)
        batch = batches[5]
        assert batch["data"].shape == batch["target"].shape == (2, 1, 4, 18, 18)
        assert batch["target"].dtype == torch.int16
        assert batch["key"] == (3, 0, 5)
        data, target, known = trainer._to_device(batch)
        assert data.shape == (2, 1, 4, 16, 16)
        assert [tuple(labels.shape[2:]) for labels in target] == [(4, 16, 16), (4, 8, 8)]
        assert torch.equal(known, batch["unknown"])
        again = trainer._to_device(batches[5])
        assert torch.equal(again[0], data)
        assert np.isfinite(float(trainer.train_step(batch)))
        looked_at = trainer.validation_batches(cases, 3)[0]
        assert "key" not in looked_at
        assert torch.equal(trainer._to_device(looked_at)[0], looked_at["data"])

    def test_unknown_classes_by_case(self, trainer_of, cases):
        unknown = {case: [1 + number % 2] for number, case in enumerate(sorted(cases))}
        recipe = student()
        recipe["batch_size"] = 6
        batches = trainer_of(recipe).training_batches(cases, 0, unknown)
        flags = batches[0]["unknown"]
        assert flags.shape == (6, 3)
        assert {tuple(row) for row in flags.tolist()} == {
            (False, True, False),
            (False, False, True),
        }
        assert "unknown" not in trainer_of(recipe).training_batches(cases, 0)[0]

    def test_order(self, trainer_of, cases):
        batches: Batches = trainer_of(teacher()).training_batches(cases, 0)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        made = list(in_order(batches, 3, 6, workers=1, pin_memory=False))
        assert torch.rand(1) == expected
        assert len(made) == 3
        for number, batch in enumerate(made, 3):
            assert torch.equal(batch["data"], batches[number]["data"])


class TestAugmentation:
    def spatial(self, patch, **changes) -> Spatial:
        return Spatial(patch, STILL | changes)

    def image(self, shape) -> dict[str, torch.Tensor]:
        data = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        label = np.random.default_rng(1).integers(-1, 4, (1, *shape)).astype(np.int16)
        return {"image": torch.from_numpy(data), "segmentation": torch.from_numpy(label)}

    def test_nothing(self):
        given = self.image((9, 12))
        result = self.spatial((5, 8))(**given)
        assert torch.equal(result["image"], given["image"][:, 2:7, 2:10])
        assert torch.equal(result["segmentation"], given["segmentation"][:, 2:7, 2:10])

    @pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (6, 8, 8)])
    def test_quarter_turn_in_plane(self, shape, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0, size=None: high)
        given = self.image(shape)
        before = {name: value.clone() for name, value in given.items()}
        spatial = self.spatial(shape, p_rotation=1.5, rotation_degrees=90.0)
        assert spatial.in_plane == (shape == (2, 8, 8))
        result = spatial(**given)
        for name, value in before.items():
            turned = torch.rot90(value, -1, (-2, -1))
            assert torch.allclose(result[name].float(), turned.float(), atol=1e-4)

    def test_scaling_zooms_out(self, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0, size=None: high)
        label = torch.zeros(1, 16, 16, dtype=torch.int16)
        label[:, 4:12, 4:12] = 3
        given = {"image": torch.rand(1, 16, 16), "segmentation": label}
        result = self.spatial((16, 16), p_scaling=1.5, scaling=[0.5, 2.0])(**given)
        seg = result["segmentation"][0]
        assert (seg[6:10, 6:10] == 3).all()
        assert (seg == 3).sum() == 16
        assert (seg[:4] == -1).all()
        assert (seg[:, 4:6][4:12] == 0).all()

    def test_elastic_deformation_is_batchgenerators(self):
        sizes, found, expected = (48, 64), [], []
        spatial = self.spatial(
            sizes, p_elastic=1.0, elastic_alpha=[200.0, 200.0], elastic_sigma=[9.0, 9.0]
        )
        for _ in range(20):
            found.append(spatial.get_parameters()["points"] - spatial.centred)
            mesh = create_zero_centered_coordinate_mesh(sizes)
            expected.append(elastic_deform_coordinates(mesh, 200.0, 9.0) - mesh)
        assert np.std(found) == pytest.approx(np.std(expected), rel=0.1)
        steps = [np.std(np.diff(field, axis=-1)) for field in (found, expected)]
        assert steps[0] == pytest.approx(steps[1], rel=0.1)

    def test_spline_is_scipys(self):
        random = np.random.default_rng(0)
        image = random.normal(size=(9, 13)).astype(np.float32)
        points = random.uniform(0, 1, (2, 500)) * np.array([[8], [12]])
        coefficients = spline_filter(image, 3, mode="mirror")
        found = spline_matrix(points, image.shape) @ coefficients.ravel()
        assert found == pytest.approx(map_coordinates(image, points, order=3), abs=1e-4)
        outside = spline_matrix(np.array([[-0.6, 4, 4], [3, 12.6, 12.4]]), image.shape)
        assert (abs(outside).sum(axis=1) > 0).tolist() == [False, False, True]

    def test_slices_share_their_deformation(self):
        given = self.image((3, 20, 20))
        given["image"][:] = given["image"][:, :1]
        result = self.spatial((3, 16, 16), p_elastic=1.0, p_rotation=1.0, p_scaling=1.0)(**given)
        assert torch.allclose(result["image"][0, 0], result["image"][0, 2])

    def test_smooth_image_is_kept(self):
        """Interpolation must not be off by half a voxel: a plane stays a plane."""
        y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
        plane = (2 * y + x)[None]
        spatial = self.spatial((16, 16), p_rotation=1.0, p_scaling=1.0)
        result = spatial(image=plane)["image"][0]
        curvature = np.diff(result.numpy(), 2, axis=0), np.diff(result.numpy(), 2, axis=1)
        assert max(np.abs(c).max() for c in curvature) < 1e-3
        middle = result[7:9, 7:9].mean()
        assert middle == pytest.approx(plane[0, 19:21, 19:21].mean().item(), abs=1e-3)

    @pytest.mark.parametrize("in_plane", [True, False])
    def test_low_resolution_is_batchgenerators(self, in_plane, monkeypatch):
        monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=0.1, size=None: low)
        given = self.image((8, 16, 20))["image"]
        expected = augment_linear_downsampling_scipy(
            given.numpy().copy(),
            zoom_range=(0.5, 1),
            order_downsample=0,
            order_upsample=3,
            ignore_axes=(0,) if in_plane else None,
        )
        before = given.clone()
        result = LowResolution([0.5, 1.0], in_plane)(image=given)["image"]
        assert result.numpy() == pytest.approx(expected, abs=1e-4)
        assert not torch.equal(result, before)

    def test_factors(self):
        np.random.seed(0)
        drawn = np.array([draw_factor(0.7, 1.5) for _ in range(2000)])
        assert drawn.min() >= 0.7
        assert drawn.max() <= 1.5
        assert np.mean(drawn < 1) == pytest.approx(0.5, abs=0.04)
        assert 1.1 <= draw_factor(1.1, 1.2) <= 1.2

    def test_only_what_can_happen(self):
        def names(augmentation):
            return [
                type(getattr(t, "transform", t)).__name__
                for t in training_transforms(
                    (16, 16), augmentation, [[1, 1], [0.5, 0.5]]
                ).transforms
            ]

        always = ["RemoveLabelTransform", "DownsampleSegForDSTransform"]
        assert names(STILL) == always
        assert names(STILL | {"p_noise": 0.1, "mirror_axes": [1]}) == [
            "GaussianNoiseTransform",
            "MirrorTransform",
            *always,
        ]
        assert names(Augmentation(mirror_axes=[0, 1]).model_dump()) == [
            "Spatial",
            "GaussianNoiseTransform",
            "GaussianBlurTransform",
            "MultiplicativeBrightnessTransform",
            "ContrastTransform",
            "LowResolution",
            "GammaTransform",
            "GammaTransform",
            "MirrorTransform",
            *always,
        ]

    def test_mirroring_keeps_to_its_axes(self):
        transforms = training_transforms((4, 4), STILL | {"mirror_axes": [0]}, [[1, 1]])
        given = torch.arange(16.0).reshape(1, 4, 4)
        label = given.to(torch.int16)
        seen = set()
        for _ in range(20):
            result = transforms(image=given.clone(), segmentation=label.clone())
            flipped = not torch.equal(result["image"], given)
            seen.add(flipped)
            assert torch.equal(result["image"], given.flip(1) if flipped else given)
            assert torch.equal(result["segmentation"][0].float(), result["image"])
        assert seen == {True, False}

    def test_all_of_it_runs(self):
        everything = Augmentation(mirror_axes=[0, 1]).model_dump() | {
            name: 1.0 for name in Augmentation.model_fields if name.startswith("p_")
        }
        for patch in ((16, 24), (4, 16, 24), (16, 16, 24)):
            size = initial_patch_size(patch, everything)
            given = self.image(size)
            result = training_transforms(patch, everything, [[1] * len(patch)])(**given)
            assert result["image"].shape == (1, *patch)
            assert result["image"].isfinite().all()
            assert result["segmentation"][0].shape == (1, *patch)
            assert result["segmentation"][0].min() >= 0

    def test_initial_patches(self):
        recipe = Augmentation().model_dump()
        assert initial_patch_size((512, 512), recipe) == [602, 602]
        assert initial_patch_size((32, 128, 192), recipe) == [32, 225, 225]
        assert initial_patch_size((32, 128, 192), STILL) == [32, 128, 192]
        assert not acts_in_plane((48, 128, 144))
        assert acts_in_plane((32, 128, 192))
