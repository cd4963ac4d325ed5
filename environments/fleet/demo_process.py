"""One server of the demo fleet in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from aiohttp import web

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.engine import Engine, EngineSettings
from icl_optimizer.piped_process import PipedProcess

from .pacing import Pace
from .pacing_proxy import PacingProxy

if TYPE_CHECKING:
    from .config import ServerConfig

HOST = "127.0.0.1"
CONTEXT_SIZE = 2048
"""Tokens of prompt and answer together that a server takes."""
_CACHE_MIB = 64
_LOOK_S = 1.0
_STOP_S = 10.0


class ServerProcess(PipedProcess):
    """Starts one server on this machine and stops it.

    Args:
        server: Its name, slots and pace.
        weights: The GGUF file that it serves.
        port: Loopback port; 0 for a free one.
    """

    def __init__(self, server: ServerConfig, weights: Path, port: int = 0) -> None:
        """Start it; :meth:`wait` says when it answers."""
        self.server = server
        self.port = port
        settings = {
            "weights": str(weights),
            "name": server.name,
            "tokens_per_s": server.tokens_per_s,
            "overhead_s": server.overhead_s,
            "slots": server.slots,
            "port": port,
        }
        # Ctrl-C reaches every process of the terminal's group; the parent ends this one
        super().__init__(
            *(__name__, settings, f"the server '{server.name}'", ConnectionError, _STOP_S),
            process_group=0,
        )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def url(self) -> str:
        """Where it answers, as ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.port}"

    def wait(self, deadline: float) -> None:
        """Return when it answers.

        Args:
            deadline: The latest moment, by ``time.monotonic()``.

        Raises:
            ConfigurationError: It cannot serve: the port is taken, or the weights do not load.
            ConnectionError: It ended, or was not ready in time.
        """
        told = self.told(deadline - time.monotonic(), "was not ready in time")
        self.port = int(told["port"])


def main() -> None:
    """Serve until the parent closes the pipe or is gone; what a started process runs."""
    settings = json.loads(sys.argv[1])
    told, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as ours
    key = secrets.token_hex(16)
    try:
        listening = _listen(settings["port"])
        engine = Engine(
            EngineSettings(Path(settings["weights"]), CONTEXT_SIZE, 1, _CACHE_MIB), key=key
        )
    except (ValueError, ImportError, OSError) as error:
        print(json.dumps({"error": str(error)}), file=told, flush=True)
        return
    asyncio.run(_serve(settings, listening, engine.address, key, told))
    # taking llama.cpp down would last, and nothing is left to save
    os._exit(0)


def _listen(port: int) -> socket.socket:
    """Return a listening socket; bound before anything is loaded, so that a taken port shows."""
    try:
        return socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        raise ConfigurationError(
            f"port is {port}, which cannot be listened on ({error.strerror}); allowed: a free "
            "port, or 0 for any."
        ) from error


async def _serve(
    settings: Mapping[str, Any], listening: socket.socket, url: str, key: str, told: TextIO
) -> None:
    pace = Pace(settings["tokens_per_s"], settings["overhead_s"])
    proxy = PacingProxy(settings["name"], pace, settings["slots"], url, key)
    runner = web.AppRunner(
        proxy.app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.SockSite(runner, listening).start()
    print(json.dumps({"port": listening.getsockname()[1]}), file=told, flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stopped.set)
    while not stopped.is_set() and os.getppid() == settings["parent"]:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _LOOK_S)
    await runner.cleanup()
