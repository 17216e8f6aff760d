"""The workers' process group. Imports ray at once: only jobs/training/trainer.py imports this module, late."""

import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_listening: list[socket.socket] = []  # the socket of rank 0, until its store takes it


class NodeInterfaceConfig(TorchConfig):
    """Ray's set-up of the process group, listening only on the address by which Ray knows the node. By default torch's
    store, which asks for no token, listens on all addresses of rank 0's machine."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _NodeInterfaceBackend


class _NodeInterfaceBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        worker_group.execute(_set_torch_distributed_env_vars)
        address, port = worker_group.execute_single(0, listen)
        about = (len(worker_group), address, port, backend_config.backend, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(i, join, i, *about) for i in range(len(worker_group))])


def use_node_interface() -> None:
    """Makes gloo and NCCL bind to the interface that owns the Ray node's address.

    By default gloo binds to the address of the host's name, on Debian 127.0.0.1, so ranks on different machines do not
    reach each other. Settings of the cluster's owner stay.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def listen() -> tuple[str, int]:
    """Opens a port on the node's address, for the store of `join`."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.create_server((address, 0), family=family, backlog=1024)
    _listening[:] = [one]
    return address, one.getsockname()[1]


def join(rank: int, world_size: int, address: str, port: int, backend: str, timeout_s: int) -> None:
    """Makes the process group, with rank 0's store on the port of `listen`."""
    from torch import distributed as dist

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    if backend == "nccl":  # as Ray does: a rank that waits for a dead rank ends instead of hanging
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    timeout = timedelta(seconds=timeout_s)
    is_first = rank == 0
    own: dict[str, Any] = {"master_listen_fd": _listening.pop().detach()} if is_first else {}
    store = dist.TCPStore(address, port, world_size, is_first, timeout=timeout, **own)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
