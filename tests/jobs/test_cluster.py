"""Ray that does not start or answer, and what is left of a cluster beside the training workers."""

import json
import os
import socket
import stat
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.node import Node

from transloom.jobs.config.schema import ClusterConfig
from transloom.jobs.ray_cluster.local_node import NODE_ENVIRONMENT
from transloom.jobs.ray_cluster.patches import environment_reply
from transloom.jobs.ray_cluster.session import private_temp_folder, ray_session, spare_cpus
from transloom.pipeline.errors import UserError


@pytest.mark.parametrize(
    ("cpus", "alive", "spare"),
    [(8, [True], 6), (2, [True], 0), (4, [True] * 4, 1), (8, [True, False], 6), (2, [True, True], 0)],
)
def test_a_task_asks_for_no_more_than_a_node_surely_has(monkeypatch, cpus, alive, spare):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": one} for one in alive])
    assert spare_cpus(ClusterConfig(num_workers=2)) == spare


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        started_at = time.monotonic()
        with (
            pytest.raises(UserError, match=rf"no Ray cluster answers at '{address}' .*Connection refused.*=null"),
            ray_session(ClusterConfig(address=address)),
        ):
            raise AssertionError("there is none")
        assert time.monotonic() - started_at < 20


def kill_raylets(monkeypatch, count: int) -> list[Node]:
    """Has the first `count` raylets that start from now on killed at once; returns the list of the nodes."""
    start, nodes = Node.start_raylet, []

    def start_and_kill(self, *arguments, **more):
        start(self, *arguments, **more)
        nodes.append(self)
        if len(nodes) <= count:
            (raylet,) = self.all_processes["raylet"]
            raylet.process.kill()

    monkeypatch.setattr(Node, "start_raylet", start_and_kill)
    for name, value in NODE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # and taken back afterwards
    return nodes


def test_ray_is_started_once_more_where_it_did_not_come_up(monkeypatch, capsys):
    nodes = kill_raylets(monkeypatch, 1)
    with ray_session(ClusterConfig(num_workers=1)):
        assert not nodes[0].live_processes(), "what had come up of the first one is left behind"
        assert ray.get(ray.remote(lambda: 3).remote()) == 3
    assert len(nodes) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Ray did not start on this machine (its processes ended: raylet")


def test_ray_that_comes_up_at_neither_attempt_is_said_and_leaves_nothing(monkeypatch):
    nodes = kill_raylets(monkeypatch, 2)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine"), ray_session(ClusterConfig()):
        raise AssertionError("it was killed")
    assert len(nodes) == 2 and not any(node.live_processes() for node in nodes)


def test_a_ray_of_ones_own_is_closed_to_other_users_and_has_no_agent_of_a_dashboard(monkeypatch, tmp_path):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    with ray_session(ClusterConfig(num_workers=1)):
        node = ray._private.worker._global_node
        session = Path(node.get_session_dir_path())
        agents = psutil.Process(node.all_processes["raylet"][0].process.pid).children()
        assert sum(one.name() == "cat" for one in agents) == 2  # in the places of both agents
        assert len(agents) == 2, "no agent's process"
        assert session.parent.parent == Path("/tmp", f"transloom-user-{os.getuid()}")
        assert stat.S_IMODE(session.parent.parent.stat().st_mode) == 0o700
    assert (session / "logs").is_dir(), "the logs stay"
    assert not [one for one in agents if one.is_running()]


def test_tasks_have_their_variables_without_an_agents_process():
    def variables() -> tuple[str | None, str | None]:
        return os.environ.get("GIVEN_TO_A_TASK"), os.environ.get("OMP_NUM_THREADS")

    with ray_session(ClusterConfig(num_workers=1)):
        for value in ("1", "2"):
            environment = {"env_vars": {"GIVEN_TO_A_TASK": value, "OMP_NUM_THREADS": value}}
            assert ray.get(ray.remote(runtime_env=environment)(variables).remote()) == (value, value)
        assert ray.get(ray.remote(variables).remote())[0] is None


def test_an_environment_of_more_than_variables_is_refused():
    assert json.loads(environment_reply('{"env_vars": {"A": "b"}}').serialized_runtime_env_context) == {
        "env_vars": {"A": "b"}
    }
    refused = environment_reply('{"working_dir": "gcs://a", "env_vars": {"A": "b"}}')
    assert refused.status and "working_dir" in refused.error_message
    assert not refused.serialized_runtime_env_context


def test_a_folder_that_somebody_else_made_first_is_not_taken(monkeypatch, tmp_path):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    usual = Path("/tmp", f"transloom-user-{os.getuid()}")
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    others = Path("/tmp/transloom-user-54321")
    others.mkdir(mode=0o777, exist_ok=True)  # by this user, whose number is another one now
    try:
        folder = Path(private_temp_folder() or "")
        assert folder.parent not in (others, usual)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        folder.parent.rmdir()
    finally:
        others.rmdir()


def test_forked_workers_draw_different_ids() -> None:
    """Two that drew the same ID put the same object when they start at once, and one aborts."""

    def draw() -> tuple[int, int, list[str]]:
        drawn = [ray.ObjectID.from_random().hex()]
        thread = threading.Thread(target=lambda: drawn.append(ray.ObjectID.from_random().hex()))
        thread.start()
        thread.join()
        time.sleep(2)  # so that one worker does not do both tasks
        return os.getpid(), os.getppid(), drawn

    with ray_session(ClusterConfig(num_workers=2)):
        task = ray.remote(num_cpus=1)(draw)
        first, second = ray.get([task.remote(), task.remote()])
    assert first[0] != second[0] and first[1] == second[1]
    assert len({*first[2], *second[2]}) == 4
