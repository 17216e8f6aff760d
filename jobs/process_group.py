"""The workers' process group over several machines. Imports ray at once: only `jobs.train` imports this, late."""

import os

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NodeInterfaceConfig(TorchConfig):
    """Ray's own set-up of the process group, over the network interface by which Ray itself knows the node."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeInterfaceBackend


class _NodeInterfaceBackend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


def use_node_interface() -> None:
    """Has gloo and NCCL bind to the interface that owns the Ray node's address.

    Left alone, gloo binds to what the host's own name resolves to, on Debian 127.0.0.1, and then ranks on different
    machines don't reach each other. A setting of the cluster's owner stays.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
