"""Models that follow a script: for this project's tests and for users' own.

They run nothing, answer at once, and keep the prompts they were given in ``prompts``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.errors import ModelError

Answer = str | Mapping[str, float]
"""A text, or a probability for each label."""


class _Script(LanguageModel):
    """What scripted models share; tokens are words."""

    remote = False

    def __init__(self, name: str, logprobs: bool, likelihoods: bool = False) -> None:
        super().__init__(
            name, Capabilities(logprobs, False, constrained=True, likelihoods=likelihoods)
        )
        self.prompts: list[str] = []

    def count_tokens(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    @abstractmethod
    def _answer(self, prompt: str) -> Answer: ...

    def _ask(self, prompt: str) -> Answer:
        self.prompts.append(prompt)
        answer = self._answer(prompt)
        self.usage.add(calls=1, prompt_tokens=self.count_tokens(prompt))
        return answer

    def _text(self, prompt: str) -> str:
        answer = self._ask(prompt)
        text = answer if isinstance(answer, str) else max(answer, key=answer.__getitem__)
        self.usage.add(completion_tokens=self.count_tokens(text))
        return text

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        texts = [self._text(prompt) for prompt in prompts]
        if choices is None:
            return texts
        for text in texts:
            if text.strip() not in choices:
                raise ModelError(f"the script answers {text!r}, allowed: {choices!r}.")
        return [text.strip() for text in texts]

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        return self._text("\n".join(message["content"] for message in messages))

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return np.array([_logprobs(self._ask(prompt), labels) for prompt in prompts])

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        pairs = zip(prompts, texts, strict=True)
        return [_logprobs(self._ask(prompt), [text])[0] for prompt, text in pairs]

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        raise ConfigurationError(f"the model '{self.name}' cannot embed texts.")

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return labels


class ScriptedLLM(_Script):
    """Gives the listed answers one after the other; it has no log-probabilities.

    Example:
        >>> ScriptedLLM(["local", "offload"]).generate(["first", "second"])
        ['local', 'offload']
    """

    def __init__(self, answers: Sequence[str]) -> None:
        """Keep the answers, in order."""
        if isinstance(answers, str):
            raise ConfigurationError("answers must be a list of texts, not one text.")
        super().__init__("scripted", logprobs=False)
        self._answers = list(answers)

    def _answer(self, prompt: str) -> str:
        if len(self.prompts) > len(self._answers):
            raise ModelError(
                f"the script has {len(self._answers)} answers and was asked once more: {prompt!r}"
            )
        return self._answers[len(self.prompts) - 1]


class FunctionLLM(_Script):
    """Answers with a function of the prompt.

    The function returns a text, or a probability for each label (spaces around labels do not
    count). ``score`` needs probabilities; ``generate`` takes the likeliest label.

    Example:
        >>> model = FunctionLLM(lambda prompt: {"local": 0.8, "offload": 0.2})
        >>> model.score(["Decision:"], [" local", " offload"]).round(2)
        array([[-0.22, -1.61]])
    """

    def __init__(
        self,
        function: Callable[[str], Answer],
        logprobs: bool = True,
        likelihoods: bool = False,
    ) -> None:
        """Keep the function.

        Args:
            function: Called with each prompt (for ``chat``, the messages joined by newlines).
            logprobs: False for a function that returns texts, so that callers generate.
            likelihoods: True for a function that knows a probability for every text that is
                asked for, so that ``likelihood`` works.
        """
        super().__init__("function", logprobs, likelihoods)
        self._function = function

    def _answer(self, prompt: str) -> Answer:
        return self._function(prompt)


def _logprobs(answer: Answer, labels: list[str]) -> list[float]:
    if isinstance(answer, str):
        raise ConfigurationError(
            f"score needs a probability for each label, the function returned {answer!r}. Return "
            "a mapping, or pass logprobs=False."
        )
    known = {label.strip(): float(value) for label, value in answer.items()}
    values = [known.get(label.strip(), 0.0) for label in labels]
    if min(values) <= 0.0 or sum(values) > 1.0 + 1e-9:
        raise ConfigurationError(
            f"each of {labels!r} needs a probability above 0, with a sum of at most 1, got "
            f"{dict(answer)!r}."
        )
    return [math.log(value) for value in values]
