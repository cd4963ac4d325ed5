"""Models that fail on order, for tests of what stands around a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ModelError
from icl_optimizer.llm import Capabilities, FunctionLLM, LanguageModel, Message
from icl_optimizer.llm.scripted import Answer

Plan = Iterable[Exception | None]

LABELS = [" local", " offload"]


def probabilities(prompt: str) -> dict[str, float]:
    return {"local": 0.75, "offload": 0.25} if "talk" in prompt else {"local": 0.1, "offload": 0.9}


class Flaky(FunctionLLM):
    """Meets the next of the planned failures at each request; None and the end: it answers.

    A batch is one request for the plan, as it is for a provider's client, and ``sent`` keeps the
    prompts of each.
    """

    def __init__(
        self,
        plan: Plan = (),
        function: Callable[[str], Answer] = probabilities,
        *,
        remote: bool = True,
    ) -> None:
        super().__init__(function, likelihoods=True)
        self.plan = iter(plan)
        self.sent: list[list[str]] = []
        self.remote = remote
        self.probed = 0

    def _probe(self) -> Capabilities:
        self.probed += 1
        self.meet([])
        return Capabilities(True, True, constrained=True, likelihoods=True)

    def forget(self) -> Flaky:
        """Have the capabilities asked for, as with a server."""
        self._capabilities = None
        return self

    def meet(self, prompts: list[str]) -> None:
        self.sent.append(prompts)
        failure = next(self.plan, None)
        if failure is not None:
            raise failure

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        self.meet(prompts)
        return super()._score(prompts, labels)

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        self.meet(prompts)
        self.usage.add(calls=len(prompts), prompt_tokens=7 * len(prompts))
        return [-len(p + t) / 3 for p, t in zip(prompts, texts, strict=True)]

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        self.meet(prompts)
        return super()._generate(prompts, max_tokens, choices, stop)

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        self.meet([messages[-1]["content"]])
        return super()._chat(messages, max_tokens)

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        self.meet(texts)
        self.usage.add(calls=len(texts), prompt_tokens=5)
        return np.array([[len(text), 1.0 / 3.0] for text in texts])

    def apply_template(self, messages: Sequence[Message]) -> str:
        self.meet([])
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        self.meet([prompt])
        return [label.strip()[:3] for label in labels]


class Untouchable(LanguageModel):
    """Fails whatever it is asked; only its name may be looked at."""

    def __init__(self, name: str = "function") -> None:
        super().__init__(name)

    def _touched(self, *values: Any) -> Any:
        raise AssertionError("the model was asked")

    count_tokens = reset = _probe = _score = _likelihood = _touched  # type: ignore[assignment]
    _generate = _chat = _embed = _first_tokens = apply_template = _touched  # type: ignore[assignment]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def server_error(retry_after: float | None = None) -> ModelError:
    return ModelError("the server said 500", "server", retry_after)
