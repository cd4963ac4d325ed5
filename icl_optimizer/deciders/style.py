"""Whether a prompt reaches the model as one text to complete or as a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from icl_optimizer.experience import Example
from icl_optimizer.llm.base import LanguageModel
from icl_optimizer.llm.conversation import as_prompt
from icl_optimizer.problem import Context
from icl_optimizer.prompting import PromptBuilder

Style = Literal["completion", "chat", "turns"]
STYLES: tuple[Style, ...] = ("completion", "chat", "turns")


def styled(
    model: LanguageModel,
    builder: PromptBuilder,
    style: Style,
    examples: Sequence[Example],
    query: Context,
) -> str:
    """Return what ``model`` is sent.

    ``completion``: one text that the model continues. ``chat``: the same text as one user message.
    ``turns``: the task as system message, each example as a message of the user and the assistant's
    reply, the query as the last message.
    """
    if style == "completion":
        return builder.render(examples, query)
    if style == "chat":
        message = {"role": "user", "content": builder.render(examples, query)}
        return as_prompt(model, [message])
    return as_prompt(model, builder.turns(examples, query))


def spelled(labels: Sequence[str], style: Style) -> list[str]:
    """Return the labels as they continue a prompt: after a space, or at the start of a reply."""
    return [f" {label}" for label in labels] if style == "completion" else list(labels)
