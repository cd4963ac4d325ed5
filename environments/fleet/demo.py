"""The demo fleet: llama.cpp servers on the embedded weights, each at a pace of its own."""

from __future__ import annotations

import http.client
import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError, MissingDependencyError

from .config import DEMO, FleetConfig, ServerConfig, load_fleet

if TYPE_CHECKING:
    from .demo_process import ServerProcess

_ASK_S = 5.0
_NEEDS = {"aiohttp": "serve", "xllamacpp": "local"}


class DemoFleet(Closing):
    """Runs a fleet of llama.cpp servers on this machine, one process each, while it is open.

    Their fields ``tokens_per_s`` and ``overhead_s`` are the pace that a proxy in front of each
    keeps, and ``llm`` is ``llamacpp``, or ``llamacpp:FILE`` for weights of your own. No process
    outlives this one, however it ends.

    Args:
        config: The fleet, or a file that describes it; None for the shipped one.
        ports: Loopback port of each server; None for free ones.
        timeout_s: Longest time until all of them answer.

    Raises:
        ConfigurationError: A server is not ``llamacpp``, a port is taken, or weights do not load.
        MissingDependencyError: aiohttp, llama.cpp or the weights are not installed.
        ConnectionError: A server did not start in time.

    Example:
        >>> with DemoFleet() as fleet:  # doctest: +SKIP
        ...     fleet.config.servers[0].llm
        'openai:ash@http://127.0.0.1:42137/v1'
    """

    def __init__(
        self,
        config: FleetConfig | str | Path | Mapping[str, Any] | None = None,
        ports: Sequence[int] | None = None,
        *,
        timeout_s: float = 120.0,
    ) -> None:
        """Start all servers at the same time and wait until each answers."""
        wanted = load_fleet(DEMO if config is None else config)
        chosen = [0] * len(wanted.servers) if ports is None else list(ports)
        if len(chosen) != len(wanted.servers):
            raise ConfigurationError(
                f"ports has {len(chosen)} entries; allowed: one for each of the "
                f"{len(wanted.servers)} servers."
            )
        require_packages()
        self._weights = [_weights(server) for server in wanted.servers]
        self._timeout_s = timeout_s
        self._wanted = wanted
        self._processes: list[ServerProcess] = []
        try:
            for place, port in enumerate(chosen):
                self._processes.append(self._started(place, port))
            self._await(self._processes)
        except BaseException:
            self.close()
            raise

    @property
    def config(self) -> FleetConfig:
        """The fleet with each server's URL in its ``llm``."""
        servers = [
            server.model_copy(update={"llm": f"openai:{server.name}@{process.url}/v1"})
            for server, process in zip(self._wanted.servers, self._processes, strict=True)
        ]
        return self._wanted.model_copy(update={"servers": tuple(servers)})

    @property
    def urls(self) -> list[str]:
        """Where each server answers, as ``http://127.0.0.1:PORT``."""
        return [process.url for process in self._processes]

    @property
    def pids(self) -> list[int]:
        """The number of each server's process."""
        return [process.pid for process in self._processes]

    def restart_dead(self) -> list[str]:
        """Start servers again whose process has ended, on their ports; return their names.

        Raises:
            ConfigurationError: A port is taken by now.
            ConnectionError: A server did not start in time.
        """
        dead = [place for place, process in enumerate(self._processes) if not process.alive]
        for place in dead:
            self._processes[place].close()
            self._processes[place] = self._started(place, self._processes[place].port)
        self._await([self._processes[place] for place in dead])
        return [self._wanted.names[place] for place in dead]

    def paces(self) -> list[dict[str, Any] | None]:
        """Return what each server counted so far; None for one that does not answer."""
        return [ask_server(url, "/pace") for url in self.urls]

    def close(self) -> None:
        """Stop all servers and wait for their end."""
        for process in self._processes:
            process.stop()
        for process in self._processes:
            process.close()

    def _started(self, place: int, port: int) -> ServerProcess:
        from .demo_process import ServerProcess

        return ServerProcess(self._wanted.servers[place], self._weights[place], port)

    def _await(self, processes: Sequence[ServerProcess]) -> None:
        deadline = time.monotonic() + self._timeout_s
        for process in processes:
            process.wait(deadline)


def ask_server(url: str, path: str, timeout_s: float = _ASK_S) -> dict[str, Any] | None:
    """Return the JSON that ``GET url + path`` gives with status 200; None for anything else.

    Args:
        url: As ``http://127.0.0.1:7700``.
        path: As ``/health``.
        timeout_s: Longest silence.
    """
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        found = json.loads(reply.read())
        return found if reply.status == 200 and isinstance(found, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def require_packages() -> None:
    """Raise MissingDependencyError unless all is installed that the demo fleet runs on."""
    for name, extra in _NEEDS.items():
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f"the demo fleet needs {name}. Install it: pip install 'icl-optimizer[{extra}]'"
            )


def _weights(server: ServerConfig) -> Path:
    from icl_optimizer.llm.spec import parse_spec
    from icl_optimizer.llm.weights import find_weights

    spec = parse_spec(server.llm)
    if spec.provider != "llamacpp" or spec.query:
        raise ConfigurationError(
            f"the server '{server.name}' has llm '{server.llm}'; allowed for a fleet that is "
            "started here: 'llamacpp', or 'llamacpp:FILE' without parameters."
        )
    file = Path(spec.model).expanduser() if spec.model else find_weights()
    if not file.is_file():
        raise ConfigurationError(
            f"the server '{server.name}' has llm '{server.llm}'; allowed: a file that exists."
        )
    return file
