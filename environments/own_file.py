"""Environments in a file of the user's own, which needs no package."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from icl_optimizer.errors import ConfigurationError

SUFFIX = ".py"


def import_file(path: str | Path) -> ModuleType:
    """Return the module in the file at ``path``, which runs once in a process.

    Its name is not the file's, so a file named like a module of somebody else hides nothing.

    Raises:
        ConfigurationError: There is no such file.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigurationError(f"environment is '{path}'; allowed: a name or a file that exists.")
    name = f"own_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"environment is '{path}'; allowed: a Python file.")
    module = module_from_spec(spec)
    # pydantic and dataclasses look a class's module up while it is being made
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
