"""Programs in processes of their own, which end with the one that started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from icl_optimizer.closing import Closing

WATCH = (
    "import os, signal, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1),"
    " os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()\n"
)
"""Python that ends its process in good order when the pipe from its parent is closed."""
_STOP_S = 20.0
_POLL_S = 0.05


class Child(Closing):
    """A server that somebody else wrote, as a process.

    Args:
        command: Its command line.
        health: URL that answers with any status when it serves.
        log: File for what it prints.
        env: Further environment variables.
        start_s: Longest time until it serves.

    Raises:
        RuntimeError: It ended, or did not serve in time; the message holds what it printed last.
    """

    def __init__(
        self,
        command: Sequence[str],
        health: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        start_s: float = 120.0,
    ) -> None:
        """Start it and wait until it serves."""
        self._command, self._health, self._log = list(command), health, log
        self._env, self._start_s = dict(env or {}), start_s
        self._process = self._started()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self.close()

    def restart(self) -> None:
        """Start it again after :meth:`kill`."""
        self.close()
        self._process = self._started()

    def close(self) -> None:
        """End it in good order."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as printed:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                env={**os.environ, **self._env},
            )
        limit = time.monotonic() + self._start_s
        while time.monotonic() < limit and process.poll() is None:
            if _answers(self._health):
                return process
            time.sleep(_POLL_S)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        tail = self._log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"'{self._command[0]}' does not serve at {self._health}: {tail}")


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def end_with_parent() -> None:
    """End this process in good order when the pipe from its parent is closed."""

    def watch() -> None:
        # not sys.stdin, whose lock would still be held at the interpreter's end
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
