"""A GGUF file's weights in the format of Hugging Face, kept in the user's cache directory."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from icl_optimizer.errors import ConfigurationError

LARGEST = 512 * 2**20
"""Largest GGUF file, in bytes, of which a copy is kept; the copy takes 5 times that."""


def is_kept(place: Path) -> bool:
    """Return whether a converted copy of a model is kept: that of a GGUF file that is not large.

    Raises:
        ConfigurationError: It is a file, but none in the format GGUF.
    """
    if place.is_dir():
        return False
    with place.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ConfigurationError(f"model is '{place}', which is no GGUF file.")
    return place.stat().st_size <= LARGEST


def converted_folder(file: Path) -> Path:
    """Return a model folder with the weights of a GGUF file, which is made at the first time.

    transformers needs half a minute to read a GGUF file of 100 MB, nearly all of it for reading
    the vocabulary again and again; the folder loads in a second. It holds the same numbers in
    single precision. Its name has the file's SHA-256 and the version of transformers, so a changed
    file is converted anew; it may be deleted at any time.

    Args:
        file: The GGUF file.

    Raises:
        OSError: The cache directory cannot be written; the message says how to choose another.
    """
    folder = _folder(file)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            _convert(file, made)
            _rename(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise OSError(
            f"cannot keep the converted weights in {folder.parent}: {error}. "
            "Set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return folder


def _folder(file: Path) -> Path:
    import transformers

    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(home) if home else Path.home() / ".cache"
    name = f"{file.stem}-{digest[:16]}-transformers-{transformers.__version__}"
    return cache / "icl-optimizer" / "gguf" / name


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models: Any = AutoModelForCausalLM  # it has no types
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    read = models.from_pretrained(file.parent, dtype=torch.float32, **source)
    config = copy.deepcopy(read.config)
    # transformers refuses to save what it remembers as quantised, though it is no longer
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = models.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(folder)


def _rename(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker
            raise
