"""Models that llama.cpp runs inside this process: no key, no server to start, no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icl_optimizer.errors import ConfigurationError, invalid_fields
from icl_optimizer.llm.base import Capabilities
from icl_optimizer.llm.completion import CompletionModel
from icl_optimizer.llm.engine import Engine, EngineSettings, shared_engine
from icl_optimizer.llm.parameters import CommonParameters
from icl_optimizer.llm.weights import find_weights

_EMBED_CONTEXT = 512
_DIGEST_BYTES = 1 << 20


class LlamaCpp(CompletionModel):
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
        top_p: float | None = None,
        repeat_penalty: float | None = None,
        logprobs: bool = True,
        name: str | None = None,
    ) -> None:
        """Load the weights, unless this process has them already.

        Args:
            model_path: A GGUF file; None for the embedded model.
            context_size: Tokens of prompt and answer together; the model's own limit holds too.
            threads: CPU threads; None for one on each physical core, at most 8, or a single one if
                torch was imported before this class was first used (see ``native``).
            seed: Of the sampling, where ``temperature`` is above 0.
            temperature: Of ``generate`` and ``chat``; 0 takes the likeliest token. ``score``
                does not depend on it, nor on ``top_p`` and ``repeat_penalty``.
            reuse_prefix: Take the common start of prompts from the cache.
            cache_mib: Memory for prefixes of earlier prompts, so that prompt families can
                alternate; a token of the embedded model takes about 0.02 MiB.
            verbose: Let llama.cpp log to stderr.
            top_p: Sample from the likeliest tokens with this share of the probability.
            repeat_penalty: Makes tokens that came up before less likely; 1 is none.
            logprobs: False treats the model as one that only writes.
            name: The spec; by default ``llamacpp``, with the file where one is given.

        Raises:
            ConfigurationError: A value is out of range, or the file is not there or not usable.
            MissingDependencyError: xllamacpp or the embedded weights are not installed.
        """
        request = {
            "temperature": temperature,
            "seed": seed,
            "top_p": top_p,
            "repeat_penalty": repeat_penalty,
        }
        _check_numbers(threads, cache_mib, {**request, "context_size": context_size})
        path = find_weights() if model_path is None else Path(model_path).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"model_path: there is no file '{path}'.")
        self._settings = EngineSettings(path, context_size, threads, cache_mib, verbose=verbose)
        self._engine: Engine | None = shared_engine(self._settings)
        self._embedder: Engine | None = None
        super().__init__(
            name or ("llamacpp" if model_path is None else f"llamacpp:{model_path}"),
            {**request, "cache_prompt": reuse_prefix},
            Capabilities(
                logprobs,
                embeddings=True,
                constrained=True,
                context_size=self._engine.context_size,
                likelihoods=logprobs,
                chat_template=True,
            ),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """The weights by their content, the settings of the requests and llama.cpp's version."""
        return {
            "name": "llamacpp",
            "file": self._settings.model_path.name,
            **_file_identity(self._settings.model_path),
            "parameters": {
                **self._request,
                "context_size": self.capabilities.context_size,
                "logprobs": self.capabilities.logprobs,
            },
            "xllamacpp": version("xllamacpp"),
        }

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

    def _embedding_engine(self) -> Engine:
        if self._embedder is None:
            self._embedder = shared_engine(
                replace(self._settings, embedding=True, cache_mib=0, context_size=_EMBED_CONTEXT)
            )
        return self._embedder


def _check_numbers(threads: int | None, cache_mib: int, common: dict[str, Any]) -> None:
    try:
        CommonParameters(**common)
    except ValidationError as error:
        raise invalid_fields("LlamaCpp", error) from None
    if threads is not None and threads < 1:
        raise ConfigurationError(f"threads must be at least 1, got {threads}.")
    if cache_mib < 0:
        raise ConfigurationError(f"cache_mib must be at least 0, got {cache_mib}.")


def _file_identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {
        "bytes": status.st_size,
        "sha256_of_ends": _digest_of_ends(path, status.st_size, status.st_mtime_ns),
    }


@lru_cache
def _digest_of_ends(path: Path, size: int, changed: int) -> str:
    """Return the SHA-256 of a file's first and last MiB and its size in decimal digits.

    The whole of a large file would take seconds; its ends hold the vocabulary and the last layer.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_DIGEST_BYTES))
        file.seek(max(0, size - _DIGEST_BYTES))
        digest.update(file.read(_DIGEST_BYTES))
    digest.update(str(size).encode())
    return digest.hexdigest()
