"""A node of a Ray cluster on this machine, for as long as this process lives: `python -m chaos.node <options as JSON>`.

Like jobs/ray_cluster/local_node.py, but without a dashboard, and it writes down who it is.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from transloom.jobs.ray_cluster.local_node import SETUP_WORKER

HOST = "127.0.0.1"


def main(options: dict[str, Any]) -> None:
    """
    Args:
        options: temp_dir, cpus, and `ready`: the file to write {"node_id", "address", "pids"} into; gcs_address for
            all nodes but the head.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    is_head = "gcs_address" not in options
    params = RayParams(
        node_ip_address=HOST,
        num_cpus=options["cpus"],
        num_gpus=0,
        temp_dir=options["temp_dir"],
        object_store_memory=150 << 20,
        dashboard_agent_listen_port=0,
        setup_worker_path=str(SETUP_WORKER),
        include_dashboard=False,
        no_monitor=True,
        include_log_monitor=False,
        gcs_address=options.get("gcs_address"),
    )
    node = Node(params, head=is_head, shutdown_at_exit=True, spawn_reaper=True)
    pids = {kind: processes[0].process.pid for kind, processes in node.all_processes.items()}
    about = {"node_id": node.node_id, "address": node.gcs_address, "pids": pids}
    ready = Path(options["ready"])
    ready.with_suffix(".tmp").write_text(json.dumps(about))
    os.rename(ready.with_suffix(".tmp"), ready)
    while not node.dead_processes():
        time.sleep(0.2)
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    sys.exit(f"ended: {[kind for kind, _ in node.dead_processes()]}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
