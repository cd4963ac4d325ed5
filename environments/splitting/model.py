"""A causal language model cut after any layer: the device's part and the edge's part."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icl_optimizer.errors import ConfigurationError, MissingDependencyError
from icl_optimizer.llm.weights import find_weights

from .converted import converted_folder, is_kept

NEEDED = ("embed_tokens", "layers", "norm", "rotary_emb")
"""Parts that a decoder must have so that it can be cut between any two layers."""
TOLERANCE = 1e-3
PACKAGES = ("transformers", "gguf", "accelerate")
"""What loading needs beside torch."""


class SplitModel:
    """A decoder whose layers ``1..p`` run on the device, the others at the edge; eqs. (1), (5).

    Both halves share the weights of the model that was loaded; nothing is copied.

    Args:
        module: A causal model of the Llama family, as transformers builds it.
        tokenizer: Its tokenizer.
        identity: Name and digest, for tables.

    Attributes:
        layers: Number of layers ``L``.
        hidden: Width ``d`` of the hidden state.
    """

    def __init__(self, module: Any, tokenizer: Any, identity: str) -> None:
        """Check that the model can be cut."""
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.identity = identity
        backbone = getattr(module, "model", None)
        missing = [part for part in NEEDED if not hasattr(backbone, part)]
        if missing:
            raise ConfigurationError(
                f"model {identity} has no {', '.join(missing)}; allowed: decoders of the Llama "
                "family (Llama, SmolLM2, Mistral, Qwen2)."
            )
        self.layers = len(module.model.layers)
        self.hidden = int(module.config.hidden_size)
        self._halves: dict[tuple[int, int, bool], Any] = {}
        self._check_cut()

    @torch.inference_mode()
    def ue(self, ids: Tensor, split: int, cache: Any = None) -> Tensor:
        """Return the hidden states after layer ``split``, computed on the device.

        Args:
            ids: Tokens ``(texts, tokens)``; with a cache those that are new.
            split: Layers ``p`` on the device, 1 to ``L``.
            cache: Keys and values of the device's layers (a ``DynamicCache``), which grows.

        Returns:
            ``(texts, tokens, hidden)``, before the channel.
        """
        return self._run(self._half(0, self.check_split(split)), cache, input_ids=ids)

    @torch.inference_mode()
    def edge(
        self, received: Tensor, split: int, cache: Any = None, *, last: bool = False
    ) -> Tensor:
        """Return the logits that the edge computes from what it received.

        Args:
            received: States ``(texts, tokens, hidden)``.
            split: Layers ``p`` that have run already.
            cache: Keys and values of the edge's layers, which grows.
            last: Whether only the last token's logits are wanted (to generate).

        Returns:
            ``(texts, tokens, vocabulary)``.
        """
        half = self._half(self.check_split(split), self.layers, edge=True)
        states = self._run(half, cache, inputs_embeds=received)
        logits: Tensor = self.module.lm_head(states[:, -1:] if last else states)
        return logits

    @torch.inference_mode()
    def states(self, ids: Tensor) -> list[Tensor]:
        """Return the hidden states after every layer: entry ``p`` is ``ue(ids, p)``.

        Entry 0 are the embeddings; all are ``(texts, tokens, hidden)``.
        """
        kept = [self.module.model.embed_tokens(ids)]
        for split in range(self.layers):
            kept.append(self._run(self._half(split, split + 1), None, inputs_embeds=kept[-1]))
        return kept

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of the model that is not split, ``(texts, tokens, vocabulary)``."""
        logits: Tensor = self.module(ids, use_cache=False).logits
        return logits

    def check_split(self, split: int) -> int:
        """Return ``split``, or raise when the model has no such layer."""
        if not 1 <= split <= self.layers:
            raise ConfigurationError(f"split is {split}; allowed: 1 to {self.layers}.")
        return split

    def _run(self, half: Any, cache: Any, **inputs: Tensor) -> Tensor:
        states: Tensor = half(
            **inputs, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return states

    def _half(self, first: int, last: int, *, edge: bool = False) -> Any:
        """Return layers ``first + 1..last`` as a decoder; the last norm belongs to the edge."""
        if (key := (first, last, edge)) not in self._halves:
            whole = self.module.model
            half = _sharing(whole)
            half.layers = nn.ModuleList(
                _at(layer, place) for place, layer in enumerate(whole.layers[first:last])
            )
            if not edge:
                half.norm = nn.Identity()
            self._halves[key] = half
        return self._halves[key]

    def _check_cut(self) -> None:
        """Raise when the halves do not make the whole, as with layers unlike the Llama family's."""
        ids = torch.arange(1, 5)[None]
        split = max(1, self.layers // 2)
        whole, halves = self.logits(ids), self.edge(self.ue(ids, split), split)
        if not torch.allclose(whole, halves, atol=TOLERANCE):
            raise ConfigurationError(
                f"model {self.identity} gives other logits when it is cut (difference "
                f"{(whole - halves).abs().max():.2g}); allowed: decoders of the Llama family."
            )


def load_split_model(path: str | Path | None = None) -> SplitModel:
    """Return a model that can be cut, from a file or folder; no network is used.

    Args:
        path: A GGUF file, or a folder in the format of Hugging Face; None for the weights of the
            embedded model (SmolLM2-135M-Instruct).

    Raises:
        ConfigurationError: There is no such file or folder, or the model cannot be cut.
        MissingDependencyError: transformers, gguf or accelerate is not installed.
    """
    place = find_weights() if path is None else Path(path)
    if not place.exists():
        raise ConfigurationError(f"model is '{place}'; allowed: a GGUF file or a model's folder.")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise MissingDependencyError(
            f"split inference needs {', '.join(missing)}: pip install 'icl-optimizer[split]'"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = converted_folder(place) if is_kept(place) else place
    folder, options = (source, {}) if source.is_dir() else (place.parent, {"gguf_file": place.name})
    settings: dict[str, Any] = {"local_files_only": True, **options}
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    return SplitModel(module, tokenizer, place.name)


def _sharing(module: Any) -> Any:
    """Return a copy of a module that shares weights and children, so that these can be replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _at(layer: Any, place: int) -> Any:
    """Return ``layer`` as the one at ``place`` of a half: its keys and values are kept there."""
    twin = _sharing(layer)
    twin.self_attn = _sharing(layer.self_attn)
    twin.self_attn.layer_idx = place
    return twin
