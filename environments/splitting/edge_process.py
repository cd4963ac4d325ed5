"""An edge in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from icl_optimizer.piped_process import PipedProcess

from .wire import Address, EdgeError

if TYPE_CHECKING:
    from .edge_server import EdgeServer

_LOOK_S = 1.0
_STOP_S = 30.0


class EdgeProcess(PipedProcess):
    """Starts an edge on this machine and stops it.

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
        settings = {"model": None if model is None else str(model)}
        # threads that spin while they wait take the cores from the device's
        env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        super().__init__(__name__, settings, "the edge's process", EdgeError, _STOP_S, env=env)
        try:
            told = self.told(timeout_s, f"did not listen within {timeout_s:g} s")
        except BaseException:
            self._process.kill()
            self.close()
            raise
        self.address: Address = str(told["host"]), int(told["port"])


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
