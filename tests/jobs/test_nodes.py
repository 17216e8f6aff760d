"""What the nodes of a cluster must have alike, and room for the workers."""

from pathlib import Path

import pytest

from transloom.jobs.config.schema import ClusterConfig
from transloom.jobs.ray_cluster.nodes import LIBRARIES, differences, examine_node, refuse_unlike, versions
from transloom.jobs.ray_cluster.session import refuse_unplaceable
from transloom.pipeline.errors import UserError

HERE = {"python": "3.11.7", "torch": "2.13.0"}
ROOT = Path("/shared/outputs")


def node(storage: str | None = None, **its: str | None) -> dict:
    return {"versions": HERE | its, "storage": storage}


def test_a_node_that_sees_the_folder_has_nothing_to_say(tmp_path):
    marker = tmp_path / ".seen"
    marker.write_bytes(b".seen")
    found = examine_node(str(marker))
    assert found["storage"] is None and found["versions"]["python"].startswith("3.")
    assert set(found["versions"]) == {"python", *LIBRARIES}
    assert list(tmp_path.iterdir()) == [marker], "it leaves nothing behind"
    refuse_unlike(versions(), {"a": found}, tmp_path)
    assert examine_node(str(tmp_path / "elsewhere" / ".seen"))["storage"] == "is not shared with it"
    marker.write_bytes(b"of another run")
    assert examine_node(str(marker))["storage"] == "is another folder there"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (node(torch=None), "the node b lacks torch: install"),
        (node(torch="2.12.0"), "the node b has other versions than the head: torch 2.12.0, not 2.13.0"),
        (node("is not shared with it"), "output_dir: /shared/outputs is not shared with it, says the node b"),
    ],
)
def test_a_node_that_could_not_take_part_is_named(found, message):
    with pytest.raises(UserError, match=message):
        refuse_unlike(HERE, {"a": node(), "b": found}, ROOT)


def test_other_versions_than_where_the_job_came_from_are_told():
    assert differences(HERE, HERE) == ""
    assert differences({}, HERE) == ""
    assert differences(HERE, HERE | {"torch": "2.14.0"}) == "torch 2.14.0 (there 2.13.0)"


@pytest.mark.parametrize(
    ("cluster", "nodes", "message"),
    [
        (
            ClusterConfig(num_workers=4),
            [{"CPU": 2.0}, {"CPU": 1.0}],
            "4 workers of 1 CPU need 4, but the cluster has 3",
        ),
        (ClusterConfig(num_workers=1, cpus_per_worker=3), [{"CPU": 2.0}] * 2, "a worker of 3 CPU must fit on one node"),
        (ClusterConfig(gpus_per_worker=1), [{"CPU": 8.0}], "1 workers of 1 GPU need 1, but the cluster has 0"),
        (
            ClusterConfig(num_workers=2, cpus_per_worker=2, gpus_per_worker=1),
            [{"CPU": 2.0, "GPU": 2.0}, {"CPU": 8.0}],
            r"\(2 CPU and 2 GPU; 8 CPU and 0 GPU\) have room for 1 of 2",
        ),
    ],
)
def test_workers_that_never_fit_are_refused(cluster, nodes, message):
    with pytest.raises(UserError, match=message):
        refuse_unplaceable(cluster, nodes)


def test_workers_that_fit_are_not():
    refuse_unplaceable(ClusterConfig(num_workers=3, cpus_per_worker=0.1), [{"CPU": 0.3}])
    refuse_unplaceable(
        ClusterConfig(num_workers=2, gpus_per_worker=1), [{"CPU": 1.0, "GPU": 1.0}] * 2 + [{"CPU": 64.0}]
    )
