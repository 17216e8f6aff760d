"""Runs a node of the local cluster, for as long as this process lives, with its options as JSON:
`python -m transloom.jobs.ray_cluster.local_node <options>`.

`ray start` can't run such a node: on Linux it replaces 127.0.0.1 by another of the machine's addresses. So this module
makes the node as `ray start --block` does, with the right address.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
SETUP_WORKER = Path(__file__).with_name("setup_worker.py")
# The environment of every Ray that this project starts; to be set before ray is imported.
NODE_ENVIRONMENT = {
    # All processes of Ray bind to 127.0.0.1, not to the machine's address in the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray starts no processes before there is work: this project's tasks have another environment, and can't use them.
    "RAY_prestart_worker_first_driver": "0",
    # The limit for the start of Ray's processes. Ray's default of 30 s is too short on a busy machine.
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "300",  # Ray's default of 60 s ends workers that are still importing
}


def main(options: dict[str, Any]) -> None:
    """Starts Ray's processes, and ends them when this process gets SIGTERM or is killed.

    Args:
        options: gcs_port, temp_dir and cpus; dashboard_port for the head alone.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    is_head = "dashboard_port" in options
    common = {
        "node_ip_address": HOST,
        "num_cpus": options["cpus"],
        "temp_dir": options["temp_dir"],
        "dashboard_agent_listen_port": 0,
        "setup_worker_path": str(SETUP_WORKER),
    }
    if is_head:
        params = RayParams(
            **common,
            gcs_server_port=options["gcs_port"],
            include_dashboard=True,
            dashboard_host=HOST,
            dashboard_port=options["dashboard_port"],
            no_monitor=True,  # a local cluster does not scale by itself
        )
    else:
        # The head has the machine's GPUs.
        params = RayParams(**common, gcs_address=f"{HOST}:{options['gcs_port']}", num_gpus=0)
    node = Node(params, head=is_head, shutdown_at_exit=True, spawn_reaper=True)
    write_ray_address(node.gcs_address, options["temp_dir"])  # jobs find the cluster by this file
    while not node.dead_processes():
        time.sleep(1)
    sys.exit(f"Ray's processes ended: {[kind for kind, _ in node.dead_processes()]}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
