"""The Markdown of a report: what its JSON holds, as tables that stand in docs/benchmarks.md so."""

from collections.abc import Mapping
from typing import Any

STAGES = ("read_s", "preprocess_s", "network_s", "export_s", "write_s", "case_s")

WORDS_OF_STEPS = """\
stock: nnU-Net 2's own trainer. workers: ours, patches augmented by the processes that load them;
device: ours, augmented in batches where the network is. plain, channels last, compiled: how the
network computes. ratio: steps/s against stock's, the median of rounds in which all took turns.
busy: share of the time in which the device works. waiting: share of the time spent waiting for
data. Memory: peaks; of the device without CUDA's own share, of the main memory that of the training
process alone."""

WORDS_OF_SCANS = """\
case: one CT from file to file in a process that is ready, where nnU-Net does not tell its stages
apart. process: that of a process that starts, loads the model and predicts the first case."""


def markdown(report: Mapping[str, Any]) -> str:
    """The text of ``report.md``."""
    has, parts = report["machine"], report["parts"]
    on_gpu = has["device"] == "cuda"
    versions = [f"torch {has['torch']}", f"Python {has['python']}"]
    versions += [f"{has['cores']} cores of {has['processor']}"]
    if on_gpu:
        versions.insert(0, f"driver {has['driver']}")
    lines = [f"### {has['card'] if on_gpu else has['processor']}", ""]
    if report["smoke"]:
        lines += ["At toy size: these figures say that all parts run, and nothing else.", ""]
    lines += [
        f"`{report['command']}`, {has['date']}: {', '.join(versions)}; {report['seconds']:.0f} s. "
        + _outcome(parts),
        "",
        "| part | | s |",
        "|---|---|---|",
        *(f"| {name} | {p['status']} | {p['seconds']:.0f} |" for name, p in parts.items()),
        "",
        "Parts run beside each other as far as none disturbs a measurement.",
    ]
    for section in (_tests, _steps, _scans, _demo):
        if rows := section(parts):
            lines += ["", *rows]
    return "\n".join(lines) + "\n"


def _outcome(parts: Mapping[str, Mapping[str, Any]]) -> str:
    bad = [name for name, part in parts.items() if part["status"] != "done"]
    return f"Not all went well: {', '.join(bad)}." if bad else "All went well."


def _found(parts: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    """What is known of some parts, beyond how they ended."""
    return [part for name in names if len(part := parts.get(name, {})) > 2]


def _tests(parts: Mapping[str, Any]) -> list[str]:
    lines = []
    for found in _found(parts, "tests"):
        count = f"Tests: {found['passed']} passed, {len(found['failed'])} failed"
        lines.append(f"{count}, {len(found['skipped'])} skipped.")
        if found["interrupted"]:
            lines.append(f"Stopped in `{found['interrupted']}`; later ones were not run.")
        for name, message in found["failed"].items():
            lines += ["", f"* failed: `{name}`: {' '.join(message)}"]
        if found["figures"]:
            lines += ["", "| figure of the tests | lowest | highest |", "|---|---|---|"]
        for name, values in sorted(found["figures"].items()):
            lines.append(f"| {name} | {min(values):.6g} | {max(values):.6g} |")
    return lines


def _steps(parts: Mapping[str, Any]) -> list[str]:
    lines = []
    for found in _found(parts, "student", "teacher"):
        size = "×".join(map(str, found["patch_size"]))
        lines += [
            f"Training the {found['network']}: batches of {found['batch_size']} patches of {size} "
            f"voxels, loaded by {found['workers']} processes.",
            "",
            "| | precision | steps/s | ratio | busy | waiting | GPU MB | main MB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for way, f in found.get("ways", {}).items():
            cells = (
                *(number(f["steps_per_s"], 2), number(f["ratio"], 2), percent(f["busy"])),
                *(percent(f["waiting"]), number(f["peak_gpu_mb"]), number(f["peak_mb"])),
            )
            lines.append(f"| {way} | {f['how']} | {' | '.join(cells)} |")
        lines += ["", _beside(found), ""]
    return [*lines, *WORDS_OF_STEPS.splitlines()] if lines else []


def _beside(found: Mapping[str, Any]) -> str:
    text = []
    if "chosen" in found:
        text.append(f"Fastest by over 3 %, with device, or plain: {found['chosen']}.")
    if "traced_mb" in found:
        text.append(
            f"`panorgan describe --recipe {found['network']}` says that a step needs "
            f"{number(found['traced_mb'])} MB."
        )
    if times := found.get("augmenting"):
        text.append(
            f"Augmenting a batch takes {times['each_on_the_cpu_ms']:.1f} ms patch by patch on one "
            f"thread of the CPU, {times['batched_on_the_device_ms']:.1f} ms on the device."
        )
    return " ".join(text)


def _scans(parts: Mapping[str, Any]) -> list[str]:
    found = _found(parts, "ct-student", "ct-teacher")
    if not found:
        return []
    size = "×".join(map(str, found[0]["shape"]))
    heads = [*(stage.removesuffix("_s") for stage in STAGES), "process", "GPU MB"]
    lines = [
        f"A CT of {size} voxels, seconds:",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for one in found:
        for way, figures in one["ways"].items():
            for place, run in enumerate(figures.get("runs", []), 1):
                process = figures["process_s"] if place == 1 else None
                cells = [number(run.get(stage), 2) for stage in STAGES]
                cells += [number(process, 1), number(run["peak_gpu_mb"])]
                lines.append(f"| {one['network']}, {way}, run {place} | {' | '.join(cells)} |")
    return [*lines, "", *WORDS_OF_SCANS.splitlines()]


def _demo(parts: Mapping[str, Any]) -> list[str]:
    lines = []
    for found in _found(parts, "demo"):
        times = ", ".join(
            f"the {name}'s training {card['seconds']:.0f} s ({card['precision']})"
            for name, card in found["trainings"].items()
        )
        scores = ", ".join(
            f"{name} DSC {part['dsc']:.1f} %, NSD {part['nsd']:.1f} %"
            for name, part in found["scores"].items()
        )
        lines.append(
            f"The demo's workflow, with {found['cores']} cores and beside other parts: "
            f"{found['seconds']:.0f} s; {times}. Validation: {scores}."
        )
    return lines


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
