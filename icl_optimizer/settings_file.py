"""Settings in a YAML or JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from icl_optimizer.errors import ConfigurationError


def read_settings(what: str, source: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Args:
        what: Whose file it is, for messages.
        source: Where it lies.

    Raises:
        ConfigurationError: There is no such file, or it holds something else.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"{what} names '{path}'; allowed: a YAML file that exists.")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what}: '{path}' is not YAML: {error}") from error
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise ConfigurationError(
            f"{what}: '{path}' holds {type(held).__name__}; allowed: a mapping from names."
        )
    return held
