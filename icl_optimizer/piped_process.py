"""A program of ours in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError


class PipedProcess(Closing):
    """Starts ``main`` of a module, is told by it when it is ready, and stops it.

    The process watches a pipe that its parent holds: it ends when the parent closes it or dies.

    Args:
        module: Whose ``main`` it runs.
        settings: Its only argument, as JSON; ``parent``, the number of this process, is added.
        owner: What it is, for messages.
        failure: Raised where it ends early or is late.
        stop_s: Longest time to end in good order.
        **options: Of :class:`subprocess.Popen`.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        owner: str,
        failure: type[Exception],
        stop_s: float,
        **options: Any,
    ) -> None:
        """Start it; :meth:`told` waits until it is ready."""
        self._owner, self._failure, self._stop_s = owner, failure, stop_s
        given = json.dumps({**settings, "parent": os.getpid()})
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()", given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def told(self, timeout_s: float, late: str) -> dict[str, Any]:
        """Return the line of JSON that the process prints when it is ready.

        Args:
            timeout_s: Longest wait, seconds.
            late: What to say of it when that is over.

        Raises:
            ConfigurationError: It says that it cannot serve.
        """
        if not select.select([self._stdout], [], [], max(0.0, timeout_s))[0]:
            raise self._failure(f"{self._owner} {late}.")
        line = self._stdout.readline()
        if not line:
            raise self._failure(f"{self._owner} ended before it listened.")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise ConfigurationError(f"{self._owner}: {told['error']}")
        return told

    def stop(self) -> None:
        """Tell it to end; :meth:`close` waits for it."""
        with suppress(BrokenPipeError):
            self._stdin.close()

    def close(self) -> None:
        """Stop the process and wait for its end."""
        self.stop()
        try:
            self._process.wait(self._stop_s)
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
