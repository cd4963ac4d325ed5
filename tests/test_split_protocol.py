"""Frames between device and edge, and a server that survives whatever comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_llama import tiny_model

from icl_optimizer.environments.splitting.channel import Channel
from icl_optimizer.environments.splitting.edge import fingerprint
from icl_optimizer.environments.splitting.edge_server import EdgeServer, Limits
from icl_optimizer.environments.splitting.generation import SplitSession
from icl_optimizer.environments.splitting.model import SplitModel
from icl_optimizer.environments.splitting.packing import Packed, pack, unpack
from icl_optimizer.environments.splitting.remote import RemoteEdge, parse_address
from icl_optimizer.environments.splitting.wire import (
    MAGIC,
    PREFIX,
    VERSION,
    EdgeError,
    Frame,
    FrameError,
    read_frame,
    send_frame,
)
from icl_optimizer.errors import ConfigurationError

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
OPEN = {"op": "open", "split": 2}
STEP = {"op": "step", "want": "token", "position": 0, "tokens": 1, "encoding": "float32"}
STATE = bytes(32 * 4)

Talk = Callable[[bytes], str]


@pytest.fixture(scope="module")
def server() -> Iterator[EdgeServer]:
    with EdgeServer(tiny_model(), limits=Limits(timeout_s=0.5)) as server:
        yield server


@pytest.fixture
def connection(server: EdgeServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, 5) as connection:
        yield connection


def asked(connection: socket.socket, header: dict[str, object], payload: bytes = b"") -> Frame:
    send_frame(connection, Frame(header, payload), 5)
    reply = read_frame(connection, 5)
    assert reply is not None
    return reply


def refusal(connection: socket.socket) -> str:
    """Return the error with which the server ends a connection."""
    reply = read_frame(connection, 5)
    assert reply is not None
    assert reply.header["op"] == "error"
    assert read_frame(connection, 5) is None
    return str(reply.header["message"])


def still_works(server: EdgeServer, split: int = 2) -> bool:
    model = tiny_model()
    with RemoteEdge(server.address, model, split) as edge:
        logits = SplitSession(model, split, edge).logits(IDS)
    return torch.allclose(logits, model.logits(torch.tensor([IDS]))[0], atol=1e-4)


def prefix(header: int, payload: int, magic: bytes = MAGIC, version: int = VERSION) -> bytes:
    return PREFIX.pack(magic, version, header, payload)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n", "a frame begins with b'GET '"),
        (prefix(2, 0, version=2) + b"{}", "version is 2; allowed: 1"),
        (prefix(2**31, 0), "header has 2,147,483,648 bytes; allowed: at most 4,096"),
        (prefix(2, 2**60), "payload has 1,152,921,504,606,846,976 bytes; allowed: at most 32,768"),
        (prefix(4, 0) + b"\xff\xfe{}", "header is no JSON"),
        (prefix(4000, 0) + b"[" * 4000, "header is no JSON"),
        (prefix(2, 0) + b"[]", "JSON, but no object"),
        (prefix(2, 100) + b"{}" + b"only this", "nothing came in time"),
    ],
)
def test_what_is_no_frame_ends_the_connection_only(
    server: EdgeServer, connection: socket.socket, sent: bytes, told: str
) -> None:
    connection.sendall(sent)
    assert told in refusal(connection)
    assert still_works(server)


def test_a_frame_cut_short(server: EdgeServer, connection: socket.socket) -> None:
    connection.sendall(prefix(2, 100) + b"{}only this")
    connection.shutdown(socket.SHUT_WR)
    assert "cut short: 9 of 100 bytes" in refusal(connection)
    assert still_works(server)


@pytest.mark.parametrize(
    ("change", "payload", "told"),
    [
        ({"op": "run"}, b"", "op is 'run'; allowed: open, step"),
        ({"op": "open", "split": 5}, b"", "split is 5; allowed: a whole number, 1 to 4"),
        ({"op": "open", "split": True}, b"", "split is True; allowed: a whole number"),
        ({"op": "open", "split": None}, b"", "split is None; allowed: a whole number"),
        ({}, STATE[:-1], "payload has 127 bytes; allowed: 128 for 1 tokens as float32"),
        ({"tokens": 0}, b"", "0 tokens come after 0; allowed: 1 to 256"),
        ({"tokens": 10**9}, STATE, "tokens is 1000000000; allowed: a whole number, 0 to 256"),
        ({"encoding": "pickle"}, STATE, "encoding is 'pickle'; allowed: float32, int8, int4"),
        ({"encoding": ["int8"]}, STATE, "encoding is ['int8']; allowed"),
        ({"encoding": "int8"}, STATE, "payload has 128 bytes; allowed: 36 for 1 tokens as int8"),
        ({"encoding": "int4"}, STATE, "payload has 128 bytes; allowed: 20 for 1 tokens as int4"),
        ({"position": 1}, STATE, "position is 1; allowed: 0, the next token"),
        ({"start": 257}, STATE, "start is 257; allowed: a whole number, 0 to 256"),
        ({"want": "weights"}, STATE, "want is 'weights'; allowed: token, logits"),
        ({}, b"\x00\x00\xc0\x7f" * 32, "numbers that are not finite"),
    ],
)
def test_what_is_not_allowed_is_refused_and_the_text_goes_on(
    connection: socket.socket, change: dict[str, object], payload: bytes, told: str
) -> None:
    assert asked(connection, OPEN).header["op"] == "opened"
    reply = asked(connection, {**STEP, **change}, payload)
    assert reply.header["op"] == "error"
    assert told in reply.header["message"]
    assert asked(connection, STEP, STATE).header["op"] == "token"


def test_a_step_needs_a_text_and_its_first_token_comes_first(connection: socket.socket) -> None:
    assert "before a text was opened" in asked(connection, STEP, STATE).header["message"]
    asked(connection, OPEN)
    asked(connection, STEP, STATE)
    late = asked(connection, {**STEP, "position": 1, "start": 7}, STATE)
    assert "start is 7 at token 1; allowed: at token 0" in late.header["message"]


def test_a_text_no_longer_than_the_models_context(connection: socket.socket) -> None:
    asked(connection, OPEN)
    long = asked(connection, {**STEP, "tokens": 256, "start": 7}, STATE * 256)
    assert "257 tokens come after 0; allowed: 1 to 256" in long.header["message"]
    assert asked(connection, {**STEP, "tokens": 256}, STATE * 256).header["op"] == "token"
    full = asked(connection, {**STEP, "position": 256}, STATE)
    assert "1 tokens come after 256; allowed: 1 to 0" in full.header["message"]


def test_two_devices_at_once_do_not_mix(server: EdgeServer) -> None:
    model = tiny_model()
    with RemoteEdge(server.address, model, 1) as one, RemoteEdge(server.address, model, 3) as two:
        first, second = SplitSession(model, 1, one), SplitSession(model, 3, two)
        for token in IDS:
            ours, theirs = first.logits([token]), second.logits([token])
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_too_many_devices_are_told_so() -> None:
    model = tiny_model()
    with (
        EdgeServer(model, limits=Limits(connections=1)) as server,
        RemoteEdge(server.address, model, 2),
        pytest.raises(EdgeError, match="busy with 1 devices; try again later"),
    ):
        RemoteEdge(server.address, model, 2)


def test_an_idle_device_loses_its_connection() -> None:
    with (
        EdgeServer(tiny_model(), limits=Limits(idle_s=0.05)) as server,
        socket.create_connection(server.address, 5) as connection,
    ):
        assert "nothing came in time" in refusal(connection)


def test_a_stopped_server_ends_its_connections() -> None:
    server = EdgeServer(tiny_model()).start()
    edge = RemoteEdge(server.address, tiny_model(), 2)
    server.close()
    with pytest.raises(EdgeError, match=r"broke|closed"):
        edge.token(Packed(STATE, "float32", 1))
    edge.close()
    with pytest.raises(EdgeError, match=f"no edge at 127.0.0.1:{server.address[1]}"):
        RemoteEdge(server.address, tiny_model(), 2)


def test_a_port_that_is_taken(server: EdgeServer) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 127.0.0.1:\d+: .*in use"):
        EdgeServer(tiny_model(), port=server.address[1])


def test_halves_of_different_models_do_not_meet(server: EdgeServer) -> None:
    ours = tiny_model()
    other = SplitModel(type(ours.module)(ours.module.config), ours.tokenizer, "other")
    with pytest.raises(EdgeError, match=r"has the model tiny .* the device other .*the same"):
        RemoteEdge(server.address, other, 2)


@pytest.mark.parametrize("reply", [{"op": "token", "token": 257}, {"op": "logits"}, {}])
def test_a_device_does_not_trust_its_edge(reply: dict[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                for said in ({"op": "opened", "fingerprint": fingerprint(tiny_model())}, reply):
                    read_frame(connection, 5)
                    send_frame(connection, Frame(said), 5)

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            RemoteEdge(listening.getsockname(), tiny_model(), 2) as edge,
            pytest.raises(EdgeError, match=r"token is 257; allowed|answered no token"),
        ):
            edge.token(Packed(STATE, "float32", 1))
        thread.join()


@pytest.mark.parametrize("hidden", [32, 33])
@pytest.mark.parametrize(
    "channel",
    [
        Channel(),
        Channel(bits=8),
        Channel(bits=4),
        Channel(bits=4, loss=0.3, known_start=False),
        Channel(bits=8, loss=0.3, unit="token"),
        Channel(bits=8, fading=1.0, threshold=0.5),
        Channel(bits=8, sigma=0.1),
        Channel(snr_db=3.0, fading=1.0, equalised=False),
    ],
    ids=str,
)
def test_bytes_say_what_the_channel_says(channel: Channel, hidden: int) -> None:
    states = torch.randn(1, 6, hidden, generator=torch.Generator().manual_seed(1))
    packed = pack(states, channel, torch.Generator().manual_seed(2), start=7)
    known = packed.start is not None
    assert known == channel.known_start
    sent = states[:, 1:] if known else states
    plain = Channel(**{**vars(channel), "known_start": False})
    assert torch.equal(unpack(packed, hidden), plain.send(sent, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("text", ["edge", "edge:", ":80", "edge:0", "edge:65536", "edge:-1"])
def test_addresses(text: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed: HOST:PORT"):
        parse_address(text)
    assert parse_address("[::1]:80") == ("::1", 80)


def test_a_reply_no_longer_than_allowed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_frame(theirs, Frame({}, b"four"), 5)
        with pytest.raises(FrameError, match="payload has 4 bytes; allowed: at most 3"):
            read_frame(ours, 5, payload_limit=3)
