"""What a raylet starts in a worker's place: asks the fork server for the worker, and ends. If the server refuses or
does not answer, this process becomes the worker, as Ray itself starts one. Needs neither the project nor any package:

`python -IS fork_client.py <the server's socket> <Ray's command of a worker, without the interpreter>`
"""

import json
import os
import socket
import sys

ACCEPTED = b"1"
SIZE_BYTES = 16


def ask(path: str, command: list[str]) -> bool:
    """Whether the server has forked the worker, with this process's environment, folder and streams."""
    request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            socket.send_fds(server, [b"%*d" % (SIZE_BYTES, len(request))], [0, 1, 2])
            server.sendall(request)
            return server.recv(1) == ACCEPTED
    except OSError:
        return False


if __name__ == "__main__":
    if not ask(sys.argv[1], sys.argv[2:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
