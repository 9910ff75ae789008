"""What a script leaves behind: its log, its problems, one line on the console."""

import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
from fault_rows import fault_rows

from panorgan.io.tables import read_table
from panorgan.run.claims import claim
from panorgan.run.job import report_problems
from panorgan.run.journal import Journal


def run_script(tmp_path, body, gpu=0, **environment):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from types import SimpleNamespace
            from panorgan.run.job import job
            from panorgan.problems import Problem, Problems
            snakemake = SimpleNamespace(
                rule="a_rule", resources=dict(gpu={gpu}), log=["results/r/logs/a.log"], output=[],
            )
            """
        )
        + textwrap.dedent(body)
    )
    return subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_everything_is_logged_and_the_console_stays_quiet(tmp_path):
    done = run_script(
        tmp_path,
        """
        import os, sys
        with job(snakemake):
            print("from python")
            print("to stderr", file=sys.stderr)
            os.system("echo from a child")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = (tmp_path / "results/r/logs/a.log").read_text()
    assert "from python\n" in log
    assert "to stderr\n" in log
    assert "from a child\n" in log
    assert "peak memory" in log
    assert not (tmp_path / "results/r/logs/a.problems.tsv").exists()


def test_a_users_mistake_is_one_line_without_traceback(tmp_path):
    done = run_script(
        tmp_path,
        """
        with job(snakemake):
            raise Problems([Problem("b", "f", "is bad", "mend it"), Problem("a", "", "too", "")])
        """,
    )
    assert done.returncode == 1
    assert done.stderr == "a_rule: 2 problems, the first: a: too\n"
    assert "Traceback" not in (tmp_path / "results/r/logs/a.log").read_text()
    assert [row["case"] for row in read_table(tmp_path / "results/r/logs/a.problems.tsv")] == [
        "a",
        "b",
    ]


def test_a_surprise_leaves_its_traceback_in_the_log(tmp_path):
    done = run_script(tmp_path, "with job(snakemake):\n    1 / 0\n")
    assert done.returncode == 1
    assert done.stderr == (
        "a_rule: unexpected ZeroDivisionError: division by zero; the log has the traceback\n"
    )
    assert "Traceback" in (tmp_path / "results/r/logs/a.log").read_text()


A_SHARD = """
    from pathlib import Path
    from panorgan.run.store import Result, ShardOutput, Work, run_shard
    def compute(case, folder):
        (folder / case).write_bytes(bytes(20_000))
        return Result()
    with job(snakemake) as this:
        this.claim_gpu()
        place = Path("results/r")
        out = ShardOutput(place / ".store/s", place / "s.tsv", place / "s")
        run_shard([Work(case, {}) for case in "abc"], compute, out, parameters=1)
    """


@pytest.mark.fault("disk-full-job")
def test_whenever_the_disk_becomes_full_a_line_says_so_and_finished_work_is_kept(small_disk):
    full = r"no space left on the disk \([\d,]+ bytes free\); free some space and run the same "
    full = f"a_rule: .*{full}command again(: finished work is kept)?\n"
    disk = small_disk(100)
    results = disk / "results/r"
    (disk / "script.py").write_bytes(bytes(4096))  # its page
    finished = 0
    for pages in range(40):
        (disk / "filler").write_bytes(b"")
        taken = sum(-(-path.stat().st_size // 4096) for path in disk.rglob("*") if path.is_file())
        (disk / "filler").write_bytes(bytes((100 - taken - pages) * 4096))
        done = run_script(disk, A_SHARD, gpu=1, CUDA_VISIBLE_DEVICES="")
        if done.returncode == 0:
            break
        fault_rows()["disk-full-job"].check(done.stderr)
        assert re.fullmatch(full, done.stderr), done.stderr
        line, *_ = report_problems(results / "logs", since=0).splitlines()
        assert line.startswith("logs: ") or f"a_rule: {line}\n" == done.stderr
        store = results / ".store/s"
        entries = Journal(store).entries if store.exists() else {}
        assert len(entries) >= finished
        finished = len(entries)
        assert not [path for path in results.rglob("*") if "tmp" in path.name]
    assert done.returncode == 0
    assert finished == 3
    assert {row["case"] for row in read_table(results / "s.tsv")} == {*"abc"}


def test_what_a_job_took_stands_beside_its_log(tmp_path):
    run_script(tmp_path, "with job(snakemake):\n    sum(range(10**6))\n")
    (row,) = read_table(tmp_path / "results/r/benchmarks/a.tsv")
    assert row.keys() == {"s", "cpu_s", "peak_mb"}
    assert float(row["peak_mb"]) > 5


def test_a_job_that_made_nothing_leaves_the_records_of_the_one_that_did(tmp_path):
    body = "with job(snakemake) as this:\n    print({!r})\n    this.computed = {}\n"
    places = [tmp_path / "results/r" / name for name in ("logs/a.log", "benchmarks/a.tsv")]
    run_script(tmp_path, body.format("nothing yet", 0))  # there is nothing to leave
    assert "nothing yet" in places[0].read_text()
    run_script(tmp_path, body.format("made it", 3))
    before = [place.read_text() for place in places]
    assert "made it" in before[0]
    places[0].unlink()  # as Snakemake does
    run_script(tmp_path, body.format("linked it", 0))
    assert [place.read_text() for place in places] == before
    run_script(tmp_path, body.format("made more", 1))
    assert "made more" in places[0].read_text()
    run_script(tmp_path, "with job(snakemake):\n    1 / 0\n")
    assert "Traceback" in places[0].read_text()
    run_script(tmp_path, body.format("linked it", 0))
    assert "made more" in places[0].read_text()


def test_problems_of_an_earlier_run_are_gone(tmp_path):
    run_script(tmp_path, "with job(snakemake):\n    1 / 0\n")
    run_script(tmp_path, "with job(snakemake):\n    pass\n")
    assert not (tmp_path / "results/r/logs/a.problems.tsv").exists()


@pytest.mark.parametrize("asks", ["before", "after"])
def test_the_job_ends_with_its_parent(tmp_path, asks):
    ask = ["_die_with_parent()"]
    wait = ["print('ready', flush=True)", "while os.getppid() == PARENT: time.sleep(0.01)"]
    lines = [
        "import os, time",
        "from panorgan.run.job import PARENT, _die_with_parent",
        *(ask + wait if asks == "before" else wait + ask),
        "time.sleep(60)",
    ]
    (tmp_path / "child.py").write_text("\n".join(lines))
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys, os, signal\n"
        "pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "child = subprocess.Popen([sys.executable, 'child.py'], **pipes)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "parent.py"], cwd=tmp_path, capture_output=True, text=True
    )
    child = int(done.stdout)
    for _ in range(50):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().split()[2] == "Z":
                break
        time.sleep(0.1)
    else:
        raise AssertionError("the child outlived its parent")


def test_without_a_gpu_the_log_says_so(tmp_path):
    body = "with job(snakemake) as this:\n    this.claim_gpu()\n"
    run_script(tmp_path, body, gpu=1, CUDA_VISIBLE_DEVICES="")
    assert "no GPU: running on the CPU" in (tmp_path / "results/r/logs/a.log").read_text()


def test_two_jobs_never_share_a_gpu_and_leave_no_file(tmp_path):
    body = """
        import os, subprocess, sys
        with job(snakemake) as this:
            this.claim_gpu()
            print("mine:", os.environ["CUDA_VISIBLE_DEVICES"])
            if len(sys.argv) == 1:
                os.environ["CUDA_VISIBLE_DEVICES"] = "test-7,test-8"
                subprocess.run([sys.executable, sys.argv[0], "inner"])
                print(open("results/r/logs/a.log").read())
        """
    (tmp_path / "tmp").mkdir()
    done = run_script(
        tmp_path, body, gpu=1, CUDA_VISIBLE_DEVICES="test-7,test-8", TMPDIR=str(tmp_path / "tmp")
    )
    assert done.returncode == 0
    log = (tmp_path / "results/r/logs/a.log").read_text()
    assert "mine: test-8" in log
    assert not list((tmp_path / "tmp").iterdir())


def test_a_job_that_computes_nothing_waits_for_no_gpu(tmp_path):
    run_script(tmp_path, "with job(snakemake):\n    pass\n", gpu=1, CUDA_VISIBLE_DEVICES="test-9")
    assert "GPU" not in (tmp_path / "results/r/logs/a.log").read_text()


def test_what_was_claimed_is_free_once_its_process_is_killed():
    code = "from panorgan.run.claims import claim; import time; "
    code += "held = claim('test'); print(held and 'held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert claim("test") is None
    process.kill()
    process.wait()
    with claim("test"):
        assert claim("test") is None
    claim("test").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be others")
def test_other_users_of_the_machine_claim_the_same_names():
    def as_another(text):
        os.setuid(65534)
        os._exit(0 if text == (claim("test") is None) else 1)

    def asks(expected):
        if not (child := os.fork()):
            as_another(expected)
        assert os.waitpid(child, 0)[1] == 0

    with claim("test"):
        asks(True)
    asks(False)


def test_the_log_of_an_orphan_outlives_the_job_that_waits_for_it(tmp_path):
    """Snakemake deletes a job's log before it starts the job again."""
    body = """
        import os, subprocess, sys
        from pathlib import Path
        with job(snakemake) as this:
            if len(sys.argv) == 1:
                state = Path("state")
                state.mkdir()
                this.keep_log(state)
                print("epoch 1", flush=True)
                Path("results/r/logs/a.log").unlink()
                waiting = subprocess.Popen([sys.executable, sys.argv[0], "inner"])
                while not Path("waiting").exists():
                    pass
                print("epoch 2", flush=True)
            else:
                Path("waiting").touch()
                print("waits")
                while not Path("results/r/.store/logs/a.log").exists():
                    pass
                this.computed = 0
        if len(sys.argv) == 1:
            waiting.wait()
        """
    done = run_script(tmp_path, body)
    assert done.returncode == 0, done.stderr
    kept = (tmp_path / "state/log-0001.txt").read_text()
    assert re.fullmatch(r"epoch 1\nepoch 2\ndone in .* MB\n", kept)
    assert (tmp_path / "results/r/.store/logs/a.log").read_text() == kept
    assert (tmp_path / "results/r/logs/a.log").read_text() == kept


def test_problems_of_a_run_are_collected(tmp_path):
    (tmp_path / "logs/r").mkdir(parents=True)
    head = "case\tfile\tcause\tcure\n"
    (tmp_path / "logs/r/x.problems.tsv").write_text(head + "a\tf.nii.gz\tis bad\tmend it\n")
    text = report_problems(tmp_path / "logs", since=0)
    assert text.splitlines() == [
        "a: f.nii.gz: is bad; mend it",
        f"logs: {tmp_path}/logs/r/x.log",
    ]
    later = time.time() + 60
    assert report_problems(tmp_path / "logs", since=later) == f"logs: {tmp_path / 'logs'}"


def test_many_problems_are_cut(tmp_path):
    rows = "".join(f"case{n:02d}\t\tis bad\t\n" for n in range(30))
    (tmp_path / "x.problems.tsv").write_text("case\tfile\tcause\tcure\n" + rows)
    lines = report_problems(tmp_path, since=0).splitlines()
    assert len(lines) == 22
    assert lines[20] == "… and 10 more"
