"""Which engine computes a network: by what is installed and asked for, and by the processor."""

import subprocess
import sys

import pytest
from fault_rows import fault_rows

from panorgan.inference.engines import choice
from panorgan.io.processor import has_bf16, usable_cores
from panorgan.problems import Problems


@pytest.fixture
def machine(monkeypatch):
    """Says what is installed and what the processor can; there is no GPU."""

    def be(installed="openvino torch", bf16=True):
        monkeypatch.setattr(
            choice, "find_spec", lambda name: object() if name in installed.split() else None
        )
        monkeypatch.setattr(choice, "version", lambda name: "1.0")
        monkeypatch.setattr(choice, "has_bf16", lambda: bf16)
        monkeypatch.setattr(choice, "gpus_here", list)

    return be


@pytest.mark.parametrize(
    ("installed", "bf16", "asked", "expected"),
    [
        ("openvino torch", True, {}, ("openvino", "bf16")),
        ("openvino torch", False, {}, ("openvino", "fp32")),
        ("openvino torch", True, {"precision": "fp32"}, ("openvino", "fp32")),
        ("openvino torch", True, {"engine": "torch"}, ("torch", "bf16")),
        ("openvino torch", True, {"engine": "torch", "precision": "fp32"}, ("torch", "fp32")),
        ("openvino", True, {}, ("openvino", "bf16")),
        ("openvino", False, {}, ("openvino", "fp32")),
        ("openvino", True, {"device": "cpu", "precision": "fp32"}, ("openvino", "fp32")),
        ("torch", True, {}, ("torch", "bf16")),
        ("torch", False, {}, ("torch", "fp32")),
    ],
)
def test_the_faster_engine_that_is_exact_enough(machine, installed, bf16, asked, expected):
    machine(installed, bf16)
    way = choice.choose(**asked)
    assert (way.engine, way.precision) == expected
    assert (way.device, way.version) == ("cpu", "1.0")


@pytest.mark.parametrize(
    ("installed", "asked", "said"),
    [
        ("", {}, "neither openvino nor torch is installed; pip install 'panorgan[predict]'"),
        ("torch", {"engine": "openvino"}, "openvino is not installed; pip install 'panorgan[pred"),
        ("openvino", {"engine": "torch"}, "torch is not installed; pip install 'panorgan[train]'"),
        ("openvino", {"device": "cuda"}, "a GPU is used by torch, which is not installed; pip"),
        (
            "openvino torch",
            {"device": "cuda", "engine": "openvino"},
            "openvino computes on the CPU only here; take device auto or cpu, or engine torch",
        ),
        (
            "openvino torch",
            {"precision": "fp16"},
            "precision fp16 needs a GPU; take precision auto",
        ),
    ],
)
@pytest.mark.fault("engine-missing")
def test_what_cannot_be_had_is_one_line(machine, installed, asked, said):
    machine(installed)
    with pytest.raises(Problems) as caught:
        choice.choose(**asked)
    assert said in str(caught.value)
    if asked == {"device": "cuda"}:
        fault_rows()["engine-missing"].check(str(caught.value))


def test_a_gpu_is_used_by_torch_alone(machine, monkeypatch):
    torch = pytest.importorskip("torch")
    devices = pytest.importorskip("panorgan.nnunet.devices")
    machine()
    monkeypatch.setattr(choice, "gpus_here", lambda: ["0"])
    monkeypatch.setattr(devices, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert choice.choose() == choice.Way("torch", "1.0", "cuda", "bf16")
    assert choice.choose(device="cpu").device == "cpu"
    assert choice.choose(engine="openvino") == choice.Way("openvino", "1.0", "cpu", "bf16")


def test_choosing_imports_neither_engine():
    assert {"choose", "start_engine"} <= {*vars(choice)}
    code = "import sys, panorgan.inference.engines.choice, panorgan.inference.predictor\n"
    code += "assert not {'torch', 'nnunetv2', 'openvino', 'blosc2', 'skimage'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("sse2 avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx2 avx512f", False)],
)
def test_bf16_is_probed(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"model name : any\nflags\t\t: fpu {flags}\n")
    assert has_bf16(str(tmp_path / "cpuinfo")) is expected
    assert not has_bf16(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 4),
        ("4:cpu,cpuacct:/j", {"cpu/j/cpu.cfs_quota_us": "300000"}, 3),
        ("4:cpu,cpuacct:/j", {"cpu/j/cpu.cfs_quota_us": "-1"}, 4),
        ("nothing", {}, 4),
    ],
)
def test_a_containers_share_of_the_cpus_counts(tmp_path, monkeypatch, group, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {*range(4)}, raising=False)
    if group != "nothing":
        place = tmp_path / "proc/self/cgroup"
        place.parent.mkdir(parents=True)
        place.write_text(group + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name.endswith("quota_us"):
            path.with_name("cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == expected
