"""How long threads that wait should spin: training steps and tiles, alone and two at once.

Each figure is a process of its own on two threads, as OpenMP reads its environment once. Rounds go
through all of them in turn; medians of seconds, and of the processor's seconds, which tell more
where the machine is not idle.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import yaml

WAYS = {
    "as it comes": {},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
WORK = ("train student", "train teacher", "predict student", "predict teacher")


def work(kind: str, count: int) -> None:
    """Print wall and processor seconds of a step, or a tile, of the demo's networks."""
    import torch

    from panorgan.config.settings import load_config, merge, read_config_file
    from panorgan.networks import build_network
    from panorgan.networks.fast import channels_last, to_fast_form, use_fast_layers

    base = yaml.safe_load(Path("config/config.yaml").read_text())
    config = load_config(merge(base, read_config_file("config/demo.yaml")))
    task, name = kind.split()
    recipe = getattr(config, name)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    outputs = 15 if name == "student" else 2
    network = build_network(input_channels=1, num_classes=outputs, **recipe.network.model_dump())
    dim, training = len(recipe.patch_size), task == "train"
    batch = recipe.batch_size if training else 1
    images = torch.randn(batch, 1, *recipe.patch_size)
    if training:
        use_fast_layers(network)
    else:
        network.eval().decoder.deep_supervision = False
        to_fast_form(network, dim, "bf16")
        images = images.to(memory_format=channels_last(dim))
    optimizer = torch.optim.AdamW(network.parameters())
    for number in range(count + 3):
        if number == 3:
            wall, cpu = time.perf_counter(), time.process_time()
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
            scores = network(images)
        if training:
            optimizer.zero_grad()
            sum(one.float().square().mean() for one in scores).backward()
            optimizer.step()
    print((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)


def start(kind: str, count: int, way: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--work", kind, "--count", str(count)]
    return subprocess.Popen(command, env=os.environ | WAYS[way], stdout=subprocess.PIPE, text=True)


def figures(process: subprocess.Popen) -> list[float]:
    return [float(value) for value in process.communicate()[0].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20, help="steps or tiles of a process")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.count)
        return
    print(f"load {os.getloadavg()[0]:.1f}; ms, and ms of the processor, alone and two at once")
    for kind in WORK:
        alone: dict[str, list] = {way: [] for way in WAYS}
        pairs: dict[str, list] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way in WAYS:
                alone[way].append(figures(start(kind, arguments.count, way)))
                two = [start(kind, arguments.count, way) for _ in range(2)]
                pairs[way] += [figures(process) for process in two]
        for way in WAYS:
            cells = (
                f"{1000 * median(column):8.1f}"
                for found in (alone, pairs)
                for column in zip(*found[way], strict=True)
            )
            print(f"{kind:16} {way:24}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
