"""``ollama:MODEL`` by completion requests: the prompt as it is, without a chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from icl_optimizer.llm.batches import ask_each
from icl_optimizer.llm.conversation import Conversation
from icl_optimizer.llm.errors import ModelError
from icl_optimizer.llm.first_token import Alternative, alternatives
from icl_optimizer.llm.langchain import LangChainModel
from icl_optimizer.llm.probe import answer_room, schema
from icl_optimizer.llm.provider_errors import call_provider, read_answer
from icl_optimizer.llm.requests import announce, estimate
from icl_optimizer.llm.usage import Usage


class OllamaCompletions(LangChainModel):
    """An Ollama model that continues prompts (``/api/generate`` with ``raw``).

    A prompt that ends where a label belongs is continued with one, so labels are among the few
    alternatives that Ollama lists; in a chat a small model begins with a sentence. Conversations
    go through the chat endpoint, as with any LangChain model.

    It takes the same arguments as :class:`~.langchain.LangChainModel`, around a ``ChatOllama``.
    """

    def _alternatives(self, prompts: list[str], top: int) -> list[list[Alternative]]:
        if any(isinstance(prompt, Conversation) for prompt in prompts):
            return super()._alternatives(prompts, top)
        self._check_room(prompts, 1)
        answers = self._complete(prompts, 1, logprobs=True, top_logprobs=top)
        return read_answer(self.name, lambda: [alternatives(a.logprobs) for a in answers])

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        chat = any(isinstance(prompt, Conversation) for prompt in prompts)
        if chat or choices is not None:
            return super()._generate(prompts, max_tokens, choices, stop)
        self._check_room(prompts, max_tokens)
        answers = self._complete(prompts, max_tokens, stop=stop)
        return [self._nonempty(answer.response or "") for answer in answers]

    def _held(self, prompts: list[str], choices: list[str]) -> list[str]:
        if any(isinstance(prompt, Conversation) for prompt in prompts):
            return super()._held(prompts, choices)
        room = answer_room(choices)
        self._check_room(prompts, room)
        answers = self._complete(prompts, room, format=schema(choices))
        return [_answer_in((answer.response or "").strip()) for answer in answers]

    def _complete(
        self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = (), **fields: Any
    ) -> list[Any]:
        """Return Ollama's whole answers in order, counted in ``usage``."""
        told = self._model._chat_params([], stop=list(stop) or None)
        options = {**told["options"], "num_predict": max_tokens}
        request = {"model": told["model"], "keep_alive": told["keep_alive"], "options": options}

        def ask(prompt: str) -> Any:
            client = self._model._client
            (settle,) = announce(estimate(prompt, max_tokens))
            answer = call_provider(
                self.name,
                lambda: client.generate(prompt=prompt, raw=True, **request, **fields),
            )
            if answer.done is not True:
                raise ModelError(f"'{self.name}' sent an answer cut short.", "malformed")
            tokens = {
                "prompt_tokens": answer.prompt_eval_count or 0,
                "completion_tokens": answer.eval_count or 0,
            }
            self.usage.add(calls=1, **tokens)
            settle(Usage(**tokens))
            return answer

        return ask_each(ask, prompts, self._concurrency)


def _answer_in(text: str) -> str:
    """Return the field ``answer`` of a JSON text, or the text where there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return str(found["answer"]) if isinstance(found, dict) and "answer" in found else text
