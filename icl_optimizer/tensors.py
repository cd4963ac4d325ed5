"""Files of named arrays: safetensors with JSON in the file's metadata; never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_optimizer.errors import ConfigurationError, MissingDependencyError

METADATA = "icl_optimizer"
INSTALL = "pip install 'icl-optimizer[rl]'"


def write_tensors(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], data: Mapping[str, Any]
) -> None:
    """Write named arrays, with ``data`` as JSON beside them in one file."""
    save_file = _safetensors().numpy.save_file
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(arrays, str(path), metadata={METADATA: json.dumps(data)})


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, NDArray[Any]], Any]:
    """Return arrays and data of :func:`write_tensors`; no data is an empty mapping.

    Args:
        path: The file.
        what: What an error calls it, as in ``saved policy``.

    Raises:
        ConfigurationError: The file cannot be read.
        MissingDependencyError: The package ``safetensors`` is not installed.
    """
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            data = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, data  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigurationError(f"{what} '{path}' cannot be read: {error}.") from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise MissingDependencyError(f"files of weights need safetensors: {INSTALL}.") from error
    return safetensors
