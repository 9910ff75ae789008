"""A SLURM cluster of one node on this machine, for the tests: no systemd, no accounting, fake GPUs.

Needs root and Debian's slurm-wlm and munge. The clients read only /etc/slurm (the executor plugin
takes SLURM_CONF from its jobs), so the configuration is linked there while the cluster is up.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIGURATION = Path("/etc/slurm")
PREFIX = "panorgan-slurm-"

# The node claims to be large, so that the full recipe's requests are accepted: nothing enforces
# them, and `--jobs` limits what runs at once.
SLURM_CONF = """\
ClusterName=panorgan
SlurmUser=root
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=3
MinJobAge=3600
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=cpu Nodes={host} MaxTime=INFINITE State=UP Default=YES
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started on this machine; empty if one can."""
    if os.geteuid() != 0:
        return "a SLURM for the tests can only be started by root"
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)} not found: apt install slurm-wlm munge"
    file = CONFIGURATION / "slurm.conf"
    if os.path.lexists(file) and not _is_ours(file):
        return f"this machine belongs to a cluster: {file} exists"
    return ""


@contextmanager
def one_node_slurm(gpus: int = 2) -> Iterator[None]:
    """Run a cluster with the partitions `cpu` and `gpu` of one node with some fake GPUs.

    A second caller waits until the first one's cluster has ended. The daemons end with this
    process, however that ends.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(open(Path(tempfile.gettempdir(), f"{PREFIX}lock"), "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _write_configuration(folder, gpus)
        stack.callback(_unlink_configuration)
        _link_configuration(folder)

        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        stack.enter_context(
            _daemon(
                folder, munged, lambda: _succeeds("munge", "-n", "-S", f"{folder}/munge.socket")
            )
        )
        stack.enter_context(
            _daemon(folder, ["slurmctld", "-D"], lambda: _succeeds("scontrol", "ping"))
        )
        stack.enter_context(
            _daemon(folder, ["slurmd", "-D"], lambda: "idle" in _output("sinfo", "-h", "-o", "%T"))
        )
        stack.callback(_cancel_jobs)
        yield


def jobs() -> list[dict[str, str]]:
    """All of Snakemake's jobs so far, in order, as `scontrol show job` describes them.

    Useful keys: JobState, Partition, TRES and TresPerJob (processors, memory, GPUs), TimeLimit; and
    Rule.
    """
    lines = _output("scontrol", "--oneliner", "show", "job").splitlines()
    found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
    found = [job for job in found if job.get("Comment", "").startswith("rule_")]
    for job in found:
        job["Rule"] = job["Comment"].removeprefix("rule_").split("_wildcards_")[0]
    return sorted(found, key=lambda job: int(job["JobId"]))


def _write_configuration(folder: Path, gpus: int) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with open(os.open(folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as key:
        key.write(os.urandom(128))
    # slurmd counts only character devices, and the number in their name becomes the GPU's id.
    for index in range(gpus):
        device = folder / f"gpu{index}"
        os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/null").st_rdev)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    host = socket.gethostname().split(".")[0]
    controller_port, node_port = _free_ports(2)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=host,
            folder=folder,
            gpus=gpus,
            controller_port=controller_port,
            node_port=node_port,
        )
    )


def _is_ours(file: Path) -> bool:
    return file.is_symlink() and file.readlink().parent.name.startswith(PREFIX)


def _link_configuration(folder: Path) -> None:
    CONFIGURATION.mkdir(exist_ok=True)
    _unlink_configuration()
    for name in ("slurm.conf", "gres.conf"):
        (CONFIGURATION / name).symlink_to(folder / name)


def _unlink_configuration() -> None:
    for name in ("slurm.conf", "gres.conf"):
        if _is_ours(CONFIGURATION / name):
            (CONFIGURATION / name).unlink()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _daemon(folder: Path, command: list[str], is_up: Callable[[], bool]) -> Iterator[None]:
    """Run a daemon as a child that dies with this process, and wait until it is up."""
    PR_SET_PDEATHSIG = 1
    libc = ctypes.CDLL(None)
    log = folder / f"{command[0]}.log"
    with open(log, "w") as file:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    try:
        _becomes_true(lambda: daemon.poll() is not None or is_up(), seconds=30)
        if daemon.poll() is not None or not is_up():
            raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _cancel_jobs() -> None:
    """End all jobs: their processes do not end with the daemons."""
    _succeeds("scancel", "--user=root")
    _becomes_true(lambda: not _output("squeue", "--noheader"), seconds=10)


def _becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
