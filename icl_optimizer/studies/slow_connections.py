"""Clients that connect and hardly speak, many at once, in a process of their own.

``python -m icl_optimizer.studies.slow_connections PORT NUMBER SECONDS`` prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

_HOST = "127.0.0.1"
_AT_ONCE = 200
"""Connections that are being opened at the same time."""
_DRIP_S = 0.5
_SPARE_FILES = 100
_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
BEGINNINGS = (b"", b"GET /health HTTP/1.1\r\nX-Slow: ", _HEAD + b"Content-Length: 900000\r\n\r\n{")
"""What they say: nothing, half of a request, a request whose body drips."""


@dataclass
class SlowCounts:
    """What became of the connections.

    Attributes:
        opened: That were accepted.
        failed: That were not.
        closed: That the server closed before the end.
    """

    opened: int = 0
    failed: int = 0
    closed: int = 0


def start_slow(port: int, number: int, seconds: float) -> subprocess.Popen[str]:
    """Open ``number`` slow connections from another process and hold them for some seconds."""
    command = [sys.executable, "-m", "icl_optimizer.studies.slow_connections"]
    options = [str(port), str(number), str(seconds)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)


def finish_slow(process: subprocess.Popen[str]) -> SlowCounts:
    """Wait for the end and return the counts.

    Raises:
        RuntimeError: The process failed.
    """
    told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the slow clients ended with code {process.returncode}")
    return SlowCounts(**json.loads(told))


async def hold(port: int, number: int, seconds: float) -> SlowCounts:
    """Open connections, let each drip a byte now and then, and count what becomes of them."""
    counts = SlowCounts()
    gate = asyncio.Semaphore(_AT_ONCE)
    end = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(*(_one(port, i, gate, end, counts) for i in range(number)))
    return counts


async def _one(
    port: int, place: int, gate: asyncio.Semaphore, end: float, counts: SlowCounts
) -> None:
    try:
        async with gate:
            reader, writer = await asyncio.open_connection(_HOST, port)
    except OSError:
        counts.failed += 1
        return
    counts.opened += 1
    beginning = BEGINNINGS[place % len(BEGINNINGS)]
    try:
        async with asyncio.timeout_at(end):
            await _drip(reader, writer, beginning)
        counts.closed += 1
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()


async def _drip(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, beginning: bytes
) -> None:
    """Write slowly until the server closes the connection."""
    with suppress(ConnectionError):
        writer.write(beginning)
        over = asyncio.ensure_future(reader.read())
        try:
            while not over.done():
                await asyncio.wait({over}, timeout=_DRIP_S)
                if beginning and not over.done():
                    writer.write(b"x")
        finally:
            over.cancel()
            await asyncio.gather(over, return_exceptions=True)


def main(arguments: Sequence[str]) -> None:
    """Hold slow connections and print what became of them."""
    port, number, seconds = int(arguments[0]), int(arguments[1]), float(arguments[2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _SPARE_FILES
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    print(json.dumps(asdict(asyncio.run(hold(port, number, seconds)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
