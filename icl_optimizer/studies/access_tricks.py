"""What people who should not get in send to the router, as bytes."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

PROMPT = "a prompt that must not be logged"
_PATIENCE_S = 30.0
_HOST = b"Host: localhost\r\n"
_JSON = b"Content-Type: application/json\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LINES = (
    b"x-request-id: a\nset-cookie: b",
    b"x-request-id: a\rset-cookie: b",
    b"x-request-id: a\r\n set-cookie: b",
    b"x-request-id: a\0b",
    b"x-request-id: \xc4\x8a",
    b"x request-id: a",
    b"x-request-id : a",
    b"x-request-id: a\r\nx-request-id: b",
    b"x-deadline-s: nan",
    b"x-deadline-s: 1\r\nx-deadline-s: 2",
    b"x-task-type: %r" % PROMPT.encode(),
    b"Content-Length: 1\r\nContent-Length: 2",
    b"Transfer-Encoding: chunked\r\nContent-Length: 2",
    b"x: " + b"y" * 100_000,
    b"\r\n".join([b"x: y"] * 1000),
)
_TARGETS = (
    *(
        b"/../v1/models",
        b"/v1/../status",
        b"/%2e%2e/status",
        b"/v1/%2e%2e%2fstatus",
        b"//v1/models",
    ),
    *(
        b"/v1/models/",
        b"/%73tatus",
        b"/status%00",
        b"/status\0",
        b"/status;x",
        b"/\xff",
        b"\\status",
    ),
    *(b"http://evil.example/status", b"*", b"status", b"/" + b"a" * 100_000, b"/page/../page.js"),
    *(b"/etc/passwd", b"/v1//models"),
)


def tricks(key: str, times: int = 20) -> Mapping[str, Sequence[bytes]]:
    """Return requests that must all get an error, by what is wrong with them.

    Args:
        key: One that opens, for those that try something else.
        times: How often each is sent.
    """
    good = b"Authorization: Bearer %s\r\n" % key.encode()
    body = json.dumps({"messages": [{"role": "user", "content": PROMPT}]}).encode()
    part = b"10000\r\n" + b" " * 65536 + b"\r\n"
    wrong = [
        b"",
        b"Bearer",
        b"Bearer " + key[:-1].encode(),
        b"Bearer x" + key.encode(),
        b"Basic eA==",
    ]
    return {
        "no key": [_post(body)] * times,
        "wrong key": [_post(body, b"Authorization: %s\r\n" % each) for each in wrong] * times,
        "body of 10 MB, declared": [_post(b"{", good, b"Content-Length: 10000000\r\n")] * times,
        "body of 10 MB, undeclared": [
            _post(part * 160, good, b"Transfer-Encoding: chunked\r\n") for _ in range(times)
        ],
        "malformed JSON": [_post(each, good) for each in _malformed(body)] * times,
        "header injection": [_post(body, good + line + b"\r\n") for line in _LINES] * times,
        "path tricks": [
            b"GET %b HTTP/1.1\r\n%b%bConnection: close\r\n\r\n" % (target, _HOST, good)
            for target in _TARGETS
        ]
        * times,
    }


def ask_raw(port: int, request: bytes) -> int:
    """Return the status of the answer to bytes; 0 where the connection was closed without one."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        with suppress(ConnectionError):
            while not _STATUS.match(got) and (part := connection.recv(65536)):
                got += part
    found = _STATUS.match(got)
    return int(found[1]) if found else 0


def _post(body: bytes, headers: bytes = b"", length: bytes | None = None) -> bytes:
    size = b"Content-Length: %d\r\n" % len(body) if length is None else length
    start = b"POST /v1/chat/completions HTTP/1.1\r\n" + _HOST + _JSON
    return start + headers + size + b"\r\n" + body


def _malformed(body: bytes) -> list[bytes]:
    return [
        *(body[:-1], b"", b"\xff\xfe", b"[]", b"null", b'{"messages": NaN}', b"[" * 100_000),
        *(b'{"messages": "x"}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
        body[:-1] + b', "stream": "yes"}',
    ]
