"""Commands that split a language model between a device and the edge."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from icl_optimizer.cli.app import app, console
from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.environments.splitting.channel import Channel
    from icl_optimizer.environments.splitting.cost import Device, Link
    from icl_optimizer.environments.splitting.generation import Generated
    from icl_optimizer.environments.splitting.model import SplitModel

split_app = typer.Typer(
    no_args_is_help=True, help="Split a language model between a device and the edge."
)
app.add_typer(split_app, name="split")

Model = Annotated[
    Path | None, typer.Option(help="GGUF file or model folder; default: the embedded model.")
]


@split_app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    split: Annotated[int, typer.Option(min=1, help="Layers on the device.")] = 5,
    channel: Annotated[
        str, typer.Option(help="As in sigma=0.5,loss=0.05,bits=8; snr_db, fading, unit, ...")
    ] = "perfect",
    edge: Annotated[
        str | None, typer.Option(help="HOST:PORT of a running edge; default: in this process.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most new tokens.")] = 40,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt as a user's message.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of noise and losses.")] = 0,
    rate: Annotated[float, typer.Option(help="Link rate, in Mbit/s.")] = 10.0,
    flops_per_joule: Annotated[float, typer.Option(help="The device's efficiency.")] = 1e11,
    model: Model = None,
) -> None:
    """Continue a text across the split; say what it costs and what the channel does."""
    _calm_threads()
    from icl_optimizer.environments.splitting.channel import Channel
    from icl_optimizer.environments.splitting.cost import Device, Link
    from icl_optimizer.environments.splitting.generation import SplitSession
    from icl_optimizer.environments.splitting.generation import generate as continued
    from icl_optimizer.environments.splitting.model import load_split_model
    from icl_optimizer.environments.splitting.remote import RemoteEdge, parse_address

    link, device = Channel.parse(channel), Device(flops_per_joule)
    radio, address = Link(rate * 1e6), parse_address(edge) if edge else None
    loaded = load_split_model(model)
    ids = _tokens(loaded, prompt, chat)
    other = RemoteEdge(address, loaded, split) if address else None
    found = continued(SplitSession(loaded, split, other, link, seed), ids, tokens)
    framed = None if other is None else other.sent_bytes
    if other is not None:
        other.close()
    console.print(found.text, markup=False, highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    rows = _effort(loaded, split, len(ids), found)
    rows |= _costs(found, framed, device, radio)
    rows |= _effect(loaded, split, ids, found, link, seed)
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)


@split_app.command()
def edge(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 7600,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Model = None,
) -> None:
    """Serve the edge's half until Ctrl-C; without encryption or password."""
    _calm_threads()
    from icl_optimizer.environments.splitting.edge_server import EdgeServer
    from icl_optimizer.environments.splitting.model import load_split_model

    server = EdgeServer(load_split_model(model), host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name, number = server.address
    console.print(f"edge: {name}:{number}", markup=False, highlight=False)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        server.close()


def _calm_threads() -> None:
    """Have torch's threads sleep while they wait; it reads this once, when it is imported.

    Two halves on one machine take turns, and threads that spin keep the other half from the cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _tokens(model: SplitModel, prompt: str, chat: bool) -> list[int]:
    """Return the prompt's tokens."""
    text = prompt
    if chat:
        if not model.tokenizer.chat_template:
            raise ConfigurationError(f"--chat: the model {model.identity} has no chat template.")
        message = {"role": "user", "content": prompt}
        text = model.tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
    ids: list[int] = model.tokenizer(text, add_special_tokens=not chat).input_ids
    if not ids:
        raise ConfigurationError("the prompt is empty; allowed: at least one token.")
    return ids


def _effort(model: SplitModel, split: int, prompt: int, found: Generated) -> dict[str, str]:
    from icl_optimizer.environments.splitting.cost import paper_flops

    passed = prompt + len(found.tokens) - 1
    printed = paper_flops(split, passed, model.hidden)
    return {
        "layers": f"{split} of {model.layers} on the device, {model.identity}",
        "tokens": f"{prompt} in the prompt, {len(found.tokens)} new, "
        f"{found.tokens_per_s:.1f} new per second",
        "device": f"{found.flops / 1e9:.3g} GFLOP counted; {printed / 1e9:.3g} GFLOP by eq. (2)",
    }


def _costs(found: Generated, framed: int | None, device: Device, link: Link) -> dict[str, str]:
    from icl_optimizer.environments.splitting.cost import SplitCost

    cost = SplitCost.of(found.flops, 8 * sum(found.sent), device, link)
    each = f", {found.sent[1]:,} each new one" if len(found.sent) > 1 else ""
    frames = "" if framed is None else f"; {framed:,} with frames"
    return {
        "sent": f"{sum(found.sent):,} bytes ({found.sent[0]:,} for the prompt{each}){frames}",
        "energy": f"{cost.energy_j:.3g} J at {device.flops_per_joule:.3g} FLOP/J",
        "on the link": f"{cost.send_s:.3g} s at {link.bit_per_s / 1e6:g} Mbit/s",
    }


def _effect(
    model: SplitModel, split: int, prompt: list[int], found: Generated, channel: Channel, seed: int
) -> dict[str, str]:
    """Return what the channel did: where the text differs, and what it costs in likelihood."""
    from icl_optimizer.environments.splitting.generation import (
        SplitSession,
        continuation_nats,
        generate,
    )

    if channel.changes_nothing:
        return {"channel": "perfect"}
    clean = generate(SplitSession(model, split), prompt, len(found.tokens))
    pairs = zip(found.tokens, clean.tokens, strict=False)
    same = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    text = "the same text as without it"
    if same is not None:
        text = f"another text from new token {same + 1} on; without it: {clean.text.strip()!r}"
    behind = continuation_nats(
        SplitSession(model, split, None, channel, seed), prompt, clean.tokens
    )
    extra = behind - continuation_nats(SplitSession(model, split), prompt, clean.tokens)
    return {
        "channel": f"{channel}: {text}",
        "its cost": f"{extra:+.3f} nats per token on the text without it "
        f"(perplexity × {math.exp(extra):.3g})",
    }
