"""What is left of a cluster beside the training workers."""

import pytest
import ray

from jobs.cluster import spare_cpus
from jobs.config import ClusterConfig


@pytest.mark.parametrize(
    ("cpus", "alive", "spare"),
    [(8, [True], 6), (2, [True], 0), (4, [True] * 4, 1), (8, [True, False], 6), (2, [True, True], 0)],
)
def test_a_task_asks_for_no_more_than_a_node_surely_has(monkeypatch, cpus, alive, spare):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": one} for one in alive])
    assert spare_cpus(ClusterConfig(num_workers=2)) == spare
