"""The program that Ray starts for a worker, in the place of its ``setup_worker.py``.

It hands its arguments, environment and open files to the server (``server.py``), whose fork is the
worker, and ends with it. Without a server it becomes the worker itself.
"""

import json
import os
import socket
import sys
from contextlib import suppress


def main() -> None:
    path, *modules = os.environ["DFF_RAY_FORKS"].split()
    variables = dict(os.environ)
    option = "--serialized-runtime-env-context="
    for word in sys.argv:
        if word.startswith(option):
            variables |= json.loads(word.removeprefix(option)).get("env_vars", {})
    # Ray reads these when it is imported. Those of one job are in any order.
    own = {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith("RAY_") and name != "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"
    }
    order = [sys.argv[1:], dict(os.environ), os.getcwd(), os.nice(0)]
    connection = socket.socket(socket.AF_UNIX)
    forked = b""
    if "RAY_RAYLET_PID" in own:  # else it serves remote clients
        with suppress(OSError):
            connection.connect(path)
            send(connection, [own, modules], [])
            send(connection, order, [0, 1, 2])
            forked = connection.recv(1)
    if not forked:
        import ray

        script = os.path.join(*ray.__path__, "_private/workers/setup_worker.py")
        os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])
    sys.exit(int(connection.recv(8) or b"1"))


def send(connection: socket.socket, message: object, files: list[int]) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(8, "big")], files)
    connection.sendall(data)


if __name__ == "__main__":
    main()
