"""One line of JSON for every decision: what was known, who decided, what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from icl_optimizer.closing import Closing
from icl_optimizer.errors import ConfigurationError


class DecisionLog(Closing):
    """Appends lines to a file; a full disk costs lines, never requests.

    Attributes:
        dropped: Lines that could not be written.

    Args:
        path: The file; None keeps nothing.

    Raises:
        ConfigurationError: The file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file."""
        self.dropped = 0
        self._file: BinaryIO | None = None
        self._torn = False
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered, so that the last line is there after a crash
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigurationError(
                f"decision_log is '{path}': {error}; allowed: a file that can be written."
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        if self._file is None:
            return
        text = json.dumps(line, ensure_ascii=False) + "\n"
        data = ("\n" * self._torn + text).encode(errors="replace")
        try:
            written = self._file.write(data)
        except OSError:
            self.dropped += 1
            return
        # what follows a line that was cut short begins a new one
        self._torn = written != len(data)
        self.dropped += self._torn

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
