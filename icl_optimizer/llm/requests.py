"""Requests on their way to a model: whether they may go, and who is told before they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.usage import Usage

if TYPE_CHECKING:
    from icl_optimizer.llm.base import LanguageModel

Settle = Callable[[Usage], None]
"""Takes the tokens that a model reports for one request, in place of the estimate."""

Gate = Callable[[Sequence[Usage]], Sequence[Settle]]
"""Takes the estimated tokens of requests before they are sent; raises to keep all of them back."""

_BYTES = 4  # per token, where tokens are not counted yet
_allowed = True
_gates: ContextVar[tuple[Gate, ...]] = ContextVar("gates", default=())


class allow_model_requests:  # lower case: it reads as a function
    """Allow or forbid calls to models outside this process.

    Scripted and embedded models always work. Takes effect at once; as a context manager it puts
    the former state back at the end:

        allow_model_requests(False)            # for good, as in a conftest.py

        with allow_model_requests(False):      # for a block
            ...
    """

    def __init__(self, allowed: bool) -> None:
        """Set the switch."""
        global _allowed
        self._before, _allowed = _allowed, allowed

    def __enter__(self) -> None:
        """Do nothing: the switch is set already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former state back."""
        global _allowed
        _allowed = self._before


def require_permission(model: LanguageModel) -> None:
    """Raise ConfigurationError when ``model`` is remote and remote calls are forbidden."""
    if model.remote and not _allowed:
        raise ConfigurationError(
            f"calls to '{model.name}' are forbidden by allow_model_requests(False). "
            "Use ScriptedLLM or FunctionLLM here."
        )


@contextmanager
def passing(gate: Gate) -> Iterator[None]:
    """Have every request of the block pass a gate, also those of threads in a copy of its context.

    Args:
        gate: Called before the requests are sent.
    """
    token = _gates.set((*_gates.get(), gate))
    try:
        yield
    finally:
        _gates.reset(token)


def announce(*estimates: Usage) -> list[Settle]:
    """Tell whoever wants to know of requests that are about to be sent.

    Args:
        *estimates: The tokens of each one.

    Returns:
        For each request what to call with the tokens that the model reports. Whatever fails, or
        reports nothing, is not settled.

    Raises:
        BudgetError: They may not be sent.
    """
    settling = [gate(estimates) for gate in _gates.get()]

    def settle(index: int, used: Usage) -> None:
        for each in settling:
            each[index](used)

    return [partial(settle, index) for index in range(len(estimates))]


def estimate(text: str = "", max_tokens: int = 0) -> Usage:
    """Return what one request may take: four bytes a token, and the longest answer allowed."""
    return Usage(prompt_tokens=-(-len(text.encode()) // _BYTES), completion_tokens=max_tokens)
