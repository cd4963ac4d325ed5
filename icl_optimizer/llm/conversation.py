"""Conversations as prompts, so that a model scores and writes the next reply of one."""

from __future__ import annotations

from collections.abc import Sequence

from icl_optimizer.llm.base import LanguageModel, Message


class Conversation(str):
    """A prompt made of messages: models that chat send these, others see them as text.

    Attributes:
        messages: Each with ``role`` (system, user, assistant) and ``content``.
    """

    messages: tuple[Message, ...]

    def __new__(cls, messages: Sequence[Message]) -> Conversation:
        """Join the messages to a text with their roles."""
        text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        conversation = super().__new__(cls, text)
        conversation.messages = tuple(messages)
        return conversation


def as_prompt(model: LanguageModel, messages: Sequence[Message]) -> str:
    """Return ``messages`` as a prompt that the model's next reply continues.

    A model that knows its own chat template gets the finished text.
    """
    template = getattr(model, "apply_template", None)
    prompt: str = Conversation(messages) if template is None else template(messages)
    return prompt
