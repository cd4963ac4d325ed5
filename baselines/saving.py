"""Files of trained baselines: JSON, or safetensors with JSON metadata; never pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from icl_optimizer import tensors
from icl_optimizer.errors import ConfigurationError
from icl_optimizer.policy import Policy

FORMAT = "icl-optimizer policy"
FORMAT_VERSION = 1


def identity(policy: Policy, kind: str) -> dict[str, Any]:
    """Return what every file says first: format, version, problem and progress.

    Args:
        policy: The policy to save.
        kind: Family that can read the file: ``drl``, ``bandit``, ``knn``, ``embedding``, ``table``,
            ``knn-predict`` or ``linear-predict``.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "policy": policy.name,
        "problem": policy.problem.name,
        "labels": list(policy.problem.labels),
        "keywords": [c.name for c in policy.problem.columns],
        "encoded_size": policy.problem.encoded_size,
        "seed": policy.seed,
        "num_timesteps": policy.num_timesteps,
    }


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write ``data``, which begins with :func:`identity`."""
    Path(path).write_text(json.dumps(data, indent=1))


def read_json(policy: Policy, kind: str, path: str | Path) -> dict[str, Any]:
    """Return the data saved by a policy of this ``kind`` on the same problem, or raise."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"saved policy '{path}' cannot be read: {error}.") from error
    return _checked(policy, kind, path, data)


def read_tensors(
    policy: Policy, kind: str, path: str | Path
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and data of a saved policy, or raise as :func:`read_json` does."""
    arrays, data = tensors.read_tensors(path, "saved policy")
    return arrays, _checked(policy, kind, path, data)


@contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Name the file where what a policy is restored from is not whole."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"saved policy '{path}' is damaged ({type(error).__name__}: {error}); "
            "allowed: a file as it was saved."
        ) from error


def _checked(policy: Policy, kind: str, path: str | Path, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigurationError(f"'{path}' is not a saved policy of this library.")
    if data.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"saved policy '{path}' has format version {data.get('format_version')}; "
            f"allowed: {FORMAT_VERSION}. Train it again with this version."
        )
    mine = identity(policy, kind)
    # a network on the nodes of a graph fits any number of them
    sizes = () if data.get("nodes") else ("labels", "keywords", "encoded_size")
    for field in ("kind", "problem", *sizes):
        if data.get(field) != mine[field]:
            raise ConfigurationError(
                f"saved policy '{path}' has {field} {data.get(field)}; allowed: {mine[field]}."
            )
    return data
