"""An edge in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError

from .wire import Address, EdgeError

if TYPE_CHECKING:
    from .edge_server import EdgeServer

_LOOK_S = 1.0
_STOP_S = 30.0


class EdgeProcess(Closing):
    """Starts an edge on this machine and stops it.

    The process watches a pipe that its parent holds: it ends when the parent closes it or dies.

    Args:
        model: As for :func:`~icl_optimizer.environments.splitting.model.load_split_model`.
        timeout_s: Longest time until it listens; loading a large file takes a while.

    Attributes:
        address: Host and port where it listens.

    Raises:
        EdgeError: It ended, or did not listen in time.
    """

    def __init__(self, model: str | Path | None = None, *, timeout_s: float = 300.0) -> None:
        """Start it and wait until it listens."""
        settings = json.dumps(
            {"model": None if model is None else str(model), "parent": os.getpid()}
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # threads that spin while they wait take the cores from the device's
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        try:
            self.address = self._await_address(timeout_s)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def close(self) -> None:
        """Stop the process and wait for its end."""
        self._stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _await_address(self, timeout_s: float) -> Address:
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise EdgeError(f"the edge's process did not listen within {timeout_s:g} s.")
        line = self._stdout.readline()
        if not line:
            raise EdgeError("the edge's process ended before it listened.")
        told = json.loads(line)
        if "error" in told:
            raise ConfigurationError(f"the edge's process: {told['error']}")
        return str(told["host"]), int(told["port"])


def main() -> None:
    """Serve until the parent closes the pipe or is gone; what a started process runs."""
    settings = json.loads(sys.argv[1])
    told, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as ours
    from .edge_server import EdgeServer
    from .model import load_split_model

    try:
        server = EdgeServer(load_split_model(settings["model"]))
    except (ValueError, ImportError, OSError) as error:
        print(json.dumps({"error": str(error)}), file=told, flush=True)
        return
    _serve(server, settings["parent"], told)
    # taking libraries down would last seconds, and nothing is left to save
    os._exit(0)


def _serve(server: EdgeServer, parent: int, told: TextIO) -> None:
    with server:
        host, port = server.address
        print(json.dumps({"host": host, "port": port}), file=told, flush=True)
        while os.getppid() == parent:
            if select.select([sys.stdin], [], [], _LOOK_S)[0]:
                return
