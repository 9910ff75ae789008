"""What `pip install panorgan[predict]` brings is enough for a laptop, and for a container's image.

The environment is made anew, as a user makes it: it sees nothing of the one that runs the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import cannot_run
from toys import write_model

from panorgan.cases.phantom import phantom_cases, write_case
from panorgan.config.labels import load_labels

pytestmark = pytest.mark.workflow

REPOSITORY = Path(__file__).parents[2]
CASES = ("validation_1", "validation_2")
MOST_MB = 950
USER = 12345  # one without a name or a home
LEFT_TO_GPUS = ("torch", "nnunetv2", "dynamic_network_architectures", "blosc2", "skimage")


@dataclass
class Laptop:
    """An environment of its own, with CTs and a model beside it."""

    folder: Path
    environment: Path
    install_s: float

    def run(self, *command: object, **options: object) -> subprocess.CompletedProcess:
        """Run a program of the environment."""
        program, *arguments = map(str, command)
        # Nothing of the packages that this process may have been told to see.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            [self.environment / "bin" / program, *arguments],
            cwd=self.folder,
            env=kept,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **options,
        )

    def panorgan(self, *arguments: object) -> str:
        """Run the tool, which has to succeed; what it prints."""
        done = self.run("panorgan", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout


def copied_for_the_build(folder: Path) -> Path:
    """What the Dockerfile takes of the checkout to install panorgan, and nothing else."""
    stage = (REPOSITORY / "Dockerfile").read_text().split("\nFROM ")[1]
    for line in re.findall(r"^COPY (.*)$", stage, re.M):
        *sources, _ = line.split()
        for source in sources:
            place = folder / source
            place.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copyfile
            copy(REPOSITORY / source, place)
    return folder


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Laptop:
    folder = tmp_path_factory.mktemp("laptop")
    write_model(folder / "model", load_labels().names, (16, 48, 64))
    for case in phantom_cases(folder):
        if case.case in CASES:
            write_case(case, seed=1, shape=(20, 32, 44), spacing_mm=(9.0, 7.0, 7.0))
    environment = folder / "environment"
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    subprocess.run([python, "-m", "venv", environment], check=True)
    laptop = Laptop(folder, environment, 0.0)
    started = time.perf_counter()
    pip = ("python", "-m", "pip", "install", "--quiet", "--no-cache-dir", "--retries=1")
    source = copied_for_the_build(folder / "source")
    done = laptop.run(*pip, "-c", source / "envs/constraints.txt", f"{source}[predict]")
    if done.returncode:
        cannot_run(f"panorgan[predict] cannot be installed: {done.stdout[-2000:]}")
    laptop.install_s = time.perf_counter() - started
    # As the image is built: where it is installed, its kernels are.
    demo = source / "docs/demo_model"
    kernels = f"NUMBA_CACHE_DIR={environment}/kernels"
    done = laptop.run(
        *("/usr/bin/env", kernels, environment / "bin/panorgan", "predict", "--device", "cpu"),
        *("-o", "labels"),
        *("-i", demo / "phantom_0000.nii.gz", "-m", demo),
    )
    assert done.returncode == 0, done.stdout
    return laptop


@pytest.fixture(scope="module")
def predicted(laptop) -> Path:
    """Label maps of the first call that ever was in the environment; says how long all took."""
    started = time.perf_counter()
    laptop.panorgan("predict", "-i", "imagesVal", "-o", "predicted", "-m", "model")
    first_s = time.perf_counter() - started
    print(
        f"\npip install panorgan[predict]: {laptop.install_s:.0f} s, {_megabytes(laptop):.0f} MB; "
        f"the first label maps after another {first_s:.0f} s"
    )
    return laptop.folder / "predicted"


def _megabytes(laptop: Laptop) -> float:
    files = (path.lstat() for path in laptop.environment.rglob("*"))
    return sum(file.st_blocks * 512 for file in files) / 1e6


def test_it_is_small_and_without_pytorch(laptop):
    there = f"from importlib.util import find_spec; print(*filter(find_spec, {LEFT_TO_GPUS}))"
    done = laptop.run("python", "-c", there)
    assert (done.returncode, done.stdout.split()) == (0, [])
    assert _megabytes(laptop) < MOST_MB


def test_pip_finds_nothing_missing(laptop):
    done = laptop.run("python", "-m", "pip", "check")
    assert done.returncode == 0, done.stdout


def test_predict(laptop, predicted):
    assert sorted(path.name for path in predicted.iterdir()) == [
        "report.json",
        *(f"{case}.nii.gz" for case in CASES),
    ]
    report = json.loads((predicted / "report.json").read_text())
    assert sorted(report["cases"]) == [*CASES]
    checked = laptop.panorgan("check", "imagesVal", "--predictions", "predicted")
    assert checked == "2 checked, 0 problems\n"


def test_the_demo_model_comes_along(laptop):
    found = laptop.run("python", "-c", "from panorgan import demo_model; print(demo_model())")
    folder = Path(found.stdout.strip())
    assert laptop.environment in folder.parents
    assert "phantom, not for clinical use" in laptop.panorgan("describe", folder)


def test_describe(laptop):
    described = json.loads(laptop.panorgan("describe", "model"))
    assert described["card"]["labels"]["1"] == "liver"
    assert described["parameters"] > 1000


def test_evaluate_fuse_and_show(laptop, predicted):
    laptop.panorgan("evaluate", "-p", "predicted", "-r", "labelsVal", "-o", "scores")
    summary = json.loads((laptop.folder / "scores/summary.json").read_text())
    assert summary["cases"] == 2
    # The references' livers, and all other organs as the model sees them.
    partial = ("--partial", "labelsVal", "--annotated", "liver")
    fused = laptop.panorgan("fuse", *partial, "--organs", "predicted", "-o", "fused")
    assert "fused: 2 fused" in fused
    image, label = "imagesVal/validation_1_0000.nii.gz", "predicted/validation_1.nii.gz"
    laptop.panorgan("show", "-i", image, "-l", label, "-o", "picture.png")
    assert (laptop.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------
# predict.sh, as challenges run a container

SANDBOX = """
set -eu
root=$1 inputs=$2 outputs=$3 environment=$4 python=$5 model=$6 script=$7
shift 7
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"

show() {  # a file or a folder, read-only unless said otherwise
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; touch "$root$2"; fi
    mount --bind "$1" "$root$2"
    mount -o "remount,bind,${3:-ro}" "$root$2"
}
for place in /usr /bin /lib /lib64 /etc; do
    if [ -L "$place" ]; then cp -P "$place" "$root$place"; else show "$place" "$place"; fi
done
for place in "$python" "$environment"; do show "$place" "$place"; done
for device in null zero random urandom; do show "/dev/$device" "/dev/$device" rw; done
show "$model" /workspace/model
show "$script" /workspace/predict.sh
show "$inputs" /workspace/inputs
show "$outputs" /workspace/outputs rw
mkdir -p "$root/dev/shm" "$root/proc" "$root/sys" "$root/tmp"
mount -t tmpfs -o size=64m tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -o remount,ro "$root"
exec prlimit --as=$((28 << 30)) chroot "$root" \\
    env -i "PATH=$environment/bin:/usr/bin:/bin" HOME=/root sh -c "cd /workspace; $*"
"""
"""A root that is read-only and holds what the image holds, 64 MB of shared memory, 28 GB of memory;
`unshare` takes the network away. Only /workspace/outputs and /dev/shm can be written to."""


@dataclass
class Container:
    """Runs commands as in a container; its inputs and outputs lie outside of it."""

    laptop: Laptop
    folder: Path

    def run(self, command: str) -> subprocess.CompletedProcess:
        places = [self.folder / name for name in ("root", "inputs", "outputs")]
        for place in places:
            place.mkdir(exist_ok=True)
        places += [self.laptop.environment, Path(sys.base_prefix)]
        places += [self.laptop.folder / "model", REPOSITORY / "container/predict.sh"]
        return subprocess.run(
            [
                *("unshare", "--mount", "--net", "--pid", "--fork"),
                *("sh", "-c", SANDBOX, "sandbox", *places, command),
            ],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def container(laptop, tmp_path) -> Container:
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True)
    if os.geteuid() != 0 or tried.returncode:
        cannot_run(f"no container can be imitated here: {tried.stderr.strip() or 'not root'}")
    container = Container(laptop, tmp_path)
    (tmp_path / "inputs").mkdir()
    for case in CASES:
        name = f"{case}_0000.nii.gz"
        (tmp_path / "inputs" / name).write_bytes((laptop.folder / "imagesVal" / name).read_bytes())
    return container


def test_the_container_that_is_imitated(container):
    done = container.run("touch /x /tmp/x inputs/x model/x; df --output=size /dev/shm")
    assert done.stdout.count("Read-only file system") == 4
    assert done.stdout.split()[-1] == "65536"
    done = container.run("cut -d: -f1 /proc/net/dev; ulimit -v; which panorgan")
    assert done.stdout.split()[-3:] == [
        *("lo", str(28 << 20), f"{container.laptop.environment}/bin/panorgan")
    ]


def test_predict_sh(container, predicted):
    done = container.run("NUMBA_DEBUG_CACHE=1 sh predict.sh; ls /dev/shm")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("2 checked, 0 problems\n")
    # What the image has compiled is loaded, but for what only `check` needs.
    assert len(re.findall("data loaded from", done.stdout)) > 8
    assert len(re.findall("data saved to", done.stdout)) < 4
    for case in CASES:
        map_there = container.folder / "outputs" / f"{case}.nii.gz"
        assert map_there.read_bytes() == (predicted / map_there.name).read_bytes()


def test_predict_sh_of_a_user_where_a_case_cannot_be_labelled(container):
    damaged = container.folder / "inputs/validation_1_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    outputs = container.folder / "outputs"
    outputs.mkdir()
    os.chown(outputs, USER, USER)
    done = container.run(f"setpriv --reuid={USER} --regid={USER} --clear-groups sh predict.sh")
    assert done.returncode == 1
    assert "validation_1: inputs/validation_1_0000.nii.gz: is truncated" in done.stdout
    assert "validation_1: outputs: inputs/validation_1_0000.nii.gz has no label map" in done.stdout
    assert "Traceback" not in done.stdout
    there = sorted(path.name for path in outputs.iterdir())
    assert there == ["report.json", "validation_2.nii.gz"]
    assert {path.stat().st_uid for path in outputs.iterdir()} == {USER}
