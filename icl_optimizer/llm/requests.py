"""The switch that keeps tests from calling models outside the process."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from icl_optimizer.errors import ConfigurationError

if TYPE_CHECKING:
    from icl_optimizer.llm.base import LanguageModel

_allowed = True


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
