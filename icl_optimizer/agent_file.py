"""The file of a saved in-context agent: JSON with a format version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from icl_optimizer.errors import ConfigurationError

FORMAT_VERSION = 1


def read_agent(path: str | Path, kind: str = "examples") -> dict[str, Any]:
    """Return a saved agent's data, or raise when it is not one of this format version.

    Args:
        path: The file.
        kind: What the agent goes by: ``examples``, or ``forecast`` for one that foresees.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"saved agent '{path}' cannot be read: {error}.") from error
    if isinstance(data, dict) and data.get("format") == "icl-optimizer policy":
        raise ConfigurationError(
            f"'{path}' is a saved policy of kind {data.get('kind')}; allowed: a saved in-context "
            "agent."
        )
    if not isinstance(data, dict) or data.get("format") != "icl-optimizer agent":
        raise ConfigurationError(f"'{path}' is not a saved agent of this library.")
    if data.get("format_version") != FORMAT_VERSION:
        raise ConfigurationError(
            f"saved agent '{path}' has format version {data.get('format_version')}; "
            f"allowed: {FORMAT_VERSION}. Train it again with this version."
        )
    found = data.setdefault("kind", "examples")
    if found != kind:
        raise ConfigurationError(f"saved agent '{path}' has kind {found}; allowed: {kind}.")
    if kind == "examples":
        # saved before a pool could age: it goes on as it did
        data["config"].setdefault("ageing", "none")
    return data
