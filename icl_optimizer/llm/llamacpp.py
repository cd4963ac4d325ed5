"""Models that llama.cpp runs inside this process: no key, no server to start, no download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.base import Capabilities, LanguageModel, Message
from icl_optimizer.llm.engine import Engine, EngineSettings, shared_engine
from icl_optimizer.llm.errors import ModelError, PromptTooLongError
from icl_optimizer.llm.labels import LabelTokens, choice_grammar
from icl_optimizer.llm.weights import find_weights

_TOP = 128  # tokens listed with each score; more than about 1,000 would cost time
_LIFT = 100.0  # far above the spread of a model's logits, so that lifted tokens come first
_EMBED_CONTEXT = 512


class LlamaCpp(LanguageModel):
    """A GGUF model inside this process; by default the embedded SmolLM2-135M-Instruct.

    Objects with the same settings share one set of loaded weights and its prefix cache. A prompt
    that starts like an earlier one only pays for its new tokens. Computing a prefix or reusing it
    moves log-probabilities by up to about 0.1, so the same prompts in the same order on a fresh
    process repeat exactly; ``reuse_prefix=False`` makes each prompt independent of the others, and
    many times slower.
    """

    remote = False

    def __init__(
        self,
        model_path: str | Path | None = None,
        context_size: int = 4096,
        threads: int | None = None,
        seed: int = 0,
        temperature: float = 0.0,
        reuse_prefix: bool = True,
        cache_mib: int = 256,
        verbose: bool = False,
    ) -> None:
        """Load the weights, unless this process has them already.

        Args:
            model_path: A GGUF file; None for the embedded model.
            context_size: Tokens of prompt and answer together; the model's own limit holds too.
            threads: CPU threads; None for one on each physical core, at most 8, or a single one if
                torch was imported before this class was first used (see ``native``).
            seed: Of the sampling, where ``temperature`` is above 0.
            temperature: Of ``generate`` and ``chat``; 0 takes the likeliest token. ``score``
                does not depend on it.
            reuse_prefix: Take the common start of prompts from the cache.
            cache_mib: Memory for prefixes of earlier prompts, so that prompt families can
                alternate; a token of the embedded model takes about 0.02 MiB.
            verbose: Let llama.cpp log to stderr.

        Raises:
            ConfigurationError: A value is out of range, or the file is not there or not usable.
            MissingDependencyError: xllamacpp or the embedded weights are not installed.
        """
        _check_numbers(context_size, threads, temperature, cache_mib)
        path = find_weights() if model_path is None else Path(model_path).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"model_path: there is no file '{path}'.")
        self._settings = EngineSettings(path, context_size, threads, cache_mib, verbose=verbose)
        self._engine: Engine | None = shared_engine(self._settings)
        self._embedder: Engine | None = None
        self._request: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "cache_prompt": reuse_prefix,
        }
        self._labels = LabelTokens(lambda text: self._running.tokenize(text))
        super().__init__(
            "llamacpp" if model_path is None else f"llamacpp:{model_path}",
            Capabilities(True, True, True, self._running.context_size, likelihoods=True),
        )

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model reads for ``text``."""
        return len(self._running.tokenize(text))

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve the same weights over the OpenAI API on loopback while the block runs.

        Args:
            port: 0 takes any free one.

        Yields:
            The base URL, for example ``http://127.0.0.1:8080/v1``; any key is accepted.
        """
        engine = Engine(self._settings, port=port, key="")
        yield f"{engine.address}/v1"

    def reset(self) -> None:
        """Load the weights anew: prefixes of earlier prompts would shift numbers a little."""
        if self._running.asked:
            self._engine = shared_engine(self._settings, fresh=True)

    def close(self) -> None:
        """Let go of the weights; they are freed when no other object uses them."""
        self._engine = self._embedder = None

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise ConfigurationError(f"the model '{self.name}' was closed.")
        return self._engine

    def _score(self, prompts: list[str], labels: list[str]) -> NDArray[np.float64]:
        return np.array([self._score_one(prompt, labels) for prompt in prompts])

    def _score_one(self, prompt: str, labels: list[str]) -> list[float]:
        ids = self._labels.distinct_ids(prompt, labels)
        top = self._first_token(prompt, {**self._request, "n_probs": _TOP})["top_logprobs"]
        known = {int(entry["id"]): float(entry["logprob"]) for entry in top}
        missing = [token for token in ids if token not in known]
        if missing:
            reference = int(top[0]["id"])
            known |= self._score_rare(prompt, missing, reference, known[reference])
        return [known[token] for token in ids]

    def _score_rare(
        self, prompt: str, tokens: list[int], reference: int, logprob: float
    ) -> dict[int, float]:
        """Return the log-probabilities of tokens outside the top list.

        Lifting them and the reference token by the same amount leaves the log-odds between them
        as they are, and listing the lifted ones is far cheaper than the whole vocabulary.
        """
        lifted = [reference, *tokens]
        request = {
            **self._request,
            "temperature": 1.0,
            "samplers": ["temperature"],
            "logit_bias": [[token, _LIFT] for token in lifted],
            "n_probs": len(lifted),
            "post_sampling_probs": True,
        }
        top = self._first_token(prompt, request)["top_probs"]
        found = {int(entry["id"]): float(entry["prob"]) for entry in top}
        if any(found.get(token, 0.0) <= 0.0 for token in lifted):
            raise ModelError(f"'{self.name}' gave no probability for some of the labels.")
        return {t: logprob + math.log(found[t]) - math.log(found[reference]) for t in tokens}

    def _first_token(self, prompt: str, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._complete(prompt, request, max_tokens=1)
        content: dict[str, Any] = answer["choices"][0]["logprobs"]["content"][0]
        return content

    def _complete(self, prompt: str, request: dict[str, Any], max_tokens: int) -> dict[str, Any]:
        self._check_room(prompt, max_tokens, self._running.context_size)
        answer = self._running.complete({**request, "prompt": prompt, "max_tokens": max_tokens})
        self._record(answer)
        return answer

    def _check_room(self, prompt: str, max_tokens: int, limit: int) -> None:
        # A token is at least one byte, so short prompts need not be counted.
        if len(prompt.encode()) + max_tokens < limit:
            return
        tokens = self.count_tokens(prompt) + max_tokens
        if tokens > limit:
            raise PromptTooLongError(tokens, limit)

    def _record(self, answer: dict[str, Any]) -> None:
        usage = answer["usage"]
        self.usage.add(
            calls=1,
            prompt_tokens=usage["prompt_tokens"],
            reused_tokens=answer["timings"]["cache_n"],
            completion_tokens=usage["completion_tokens"],
        )

    def _likelihood(self, prompts: list[str], texts: list[str]) -> list[float]:
        return [self._likelihood_one(p, t) for p, t in zip(prompts, texts, strict=True)]

    def _likelihood_one(self, prompt: str, text: str) -> float:
        """Force the text token by token and add up what the model would have given each.

        The listed log-probabilities are those before the grammar restricts the choice.
        """
        ids = self._labels.all_ids(prompt, text)
        grammar = "root ::= " + " ".join(f"<[{token}]>" for token in ids)
        request = {**self._request, "grammar": grammar, "n_probs": 1}
        answer = self._complete(prompt, request, max_tokens=len(ids))
        content = answer["choices"][0]["logprobs"]["content"]
        if [int(entry["id"]) for entry in content] != ids:
            raise ModelError(f"'{self.name}' did not follow the tokens of {text!r}.")
        return float(sum(entry["logprob"] for entry in content))

    def _generate(
        self, prompts: list[str], max_tokens: int, choices: list[str] | None, stop: list[str]
    ) -> list[str]:
        request = {**self._request, "stop": stop}
        if choices is not None:
            request["grammar"] = choice_grammar(choices)
            max_tokens = 1 + max(len(choice.encode()) for choice in choices)
        answers = [self._complete(prompt, request, max_tokens) for prompt in prompts]
        texts = [str(answer["choices"][0]["text"]) for answer in answers]
        return texts if choices is None else [self._choice(text, choices) for text in texts]

    def _choice(self, text: str, choices: list[str]) -> str:
        if text.strip() not in choices:
            raise ModelError(f"'{self.name}' answered {text!r}, allowed: {choices!r}.")
        return text.strip()

    def _chat(self, messages: list[Message], max_tokens: int) -> str:
        body = {"messages": [dict(message) for message in messages], "max_tokens": max_tokens}
        answer = self._running.chat({**self._request, **body})
        self._record(answer)
        return str(answer["choices"][0]["message"]["content"] or "")

    def _embed(self, texts: list[str]) -> NDArray[np.float64]:
        if self._embedder is None:
            self._embedder = shared_engine(
                replace(self._settings, embedding=True, cache_mib=0, context_size=_EMBED_CONTEXT)
            )
        for text in texts:
            self._check_room(text, 0, self._embedder.context_size)
        answer = self._embedder.embed(texts)
        self.usage.add(calls=len(texts), prompt_tokens=answer["usage"]["prompt_tokens"])
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return np.array([row["embedding"] for row in rows], dtype=np.float64)

    def _first_tokens(self, prompt: str, labels: list[str]) -> list[str]:
        return [text for _, text in self._labels.first_tokens(prompt, labels)]


def _check_numbers(
    context_size: int, threads: int | None, temperature: float, cache_mib: int
) -> None:
    if context_size < 16:
        raise ConfigurationError(f"context_size must be at least 16 tokens, got {context_size}.")
    if threads is not None and threads < 1:
        raise ConfigurationError(f"threads must be at least 1, got {threads}.")
    if temperature < 0:
        raise ConfigurationError(f"temperature must be at least 0, got {temperature}.")
    if cache_mib < 0:
        raise ConfigurationError(f"cache_mib must be at least 0, got {cache_mib}.")
