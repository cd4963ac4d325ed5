"""A random decoder of the Llama family with four small layers, and a tokenizer of bytes."""

from functools import cache
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from icl_optimizer.environments.splitting.model import SplitModel

START = 256


class ByteTokenizer:
    """A token per byte, and one that starts a text."""

    bos_token_id = START
    eos_token_id = START

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> SimpleNamespace:
        ids = list(text.encode())
        return SimpleNamespace(input_ids=[START, *ids] if add_special_tokens else ids)


@cache
def tiny_model() -> SplitModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return SplitModel(LlamaForCausalLM(config), ByteTokenizer(), "tiny")
