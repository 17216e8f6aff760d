"""What is left of a cluster beside the training workers."""

import socket
import time

import pytest
import ray

from jobs.cluster import ray_session, spare_cpus
from jobs.config import ClusterConfig
from pipeline.errors import UserError


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
