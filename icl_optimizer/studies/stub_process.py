"""A stub server in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import urllib.request
from typing import Any

from icl_optimizer.closing import Closing
from icl_optimizer.studies.stub_server import StubCounts, StubFault, StubSettings

_START_S = 60.0
_STOP_S = 10.0
_ORDER_S = 10.0


class StubProcess(Closing):
    """Starts a :class:`~icl_optimizer.studies.stub_server.StubServer` and stops it.

    Args:
        settings: How it answers.

    Attributes:
        settings: The same, with the port that it got.
        url: Base URL for clients.

    Raises:
        RuntimeError: It did not listen in time.
    """

    def __init__(self, settings: StubSettings | None = None) -> None:
        """Start it and wait until it listens."""
        self.settings = settings or StubSettings()
        self._process, self._control = self._start()

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        fields = {"parent": os.getpid(), **self.settings.model_dump()}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "icl_optimizer.studies.stub_server", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], _START_S)[0]
        line = process.stdout.readline() if ready else b""
        if not line:
            _end(process)
            raise RuntimeError(f"the stub server did not listen within {_START_S:g} s")
        told = json.loads(line)
        self.settings = self.settings.model_copy(update={"port": told["port"]})
        return process, int(told["control_port"])

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return f"http://127.0.0.1:{self.settings.port}/v1"

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def order(self, fault: StubFault) -> None:
        """Let ``fault`` hold from now on."""
        self._ask("fault", fault.model_dump_json().encode())

    def counts(self) -> StubCounts:
        """Return what was asked of it so far."""
        return StubCounts(**self._ask("counts"))

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._process.kill()
        _end(self._process)

    def restart(self) -> None:
        """Start it again on the same port; its counts begin at zero."""
        self.close()
        self._process, self._control = self._start()

    def close(self) -> None:
        """Stop the process and wait for its end."""
        _end(self._process)

    def _ask(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._control}/{path}"
        with urllib.request.urlopen(url, data, timeout=_ORDER_S) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        return told


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
