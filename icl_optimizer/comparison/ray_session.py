"""A connection to a Ray cluster that says nothing and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from icl_optimizer.errors import ConfigurationError, MissingDependencyError

_QUIET = {
    # sends nothing to Ray's makers
    "RAY_USAGE_STATS_ENABLED": "0",
    # its next default; the present one comes with a warning
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
CONNECT_S = 10.0
"""How long a cluster's address has to answer."""
_STORE_BYTES = 100 * 2**20
"""For results in transit, which are small."""


@contextmanager
def ray_session(address: str | None, cores: int | None) -> Iterator[Any]:
    """Yield the module ``ray``, connected.

    One that the caller had connected before stays as it is.

    Args:
        address: Of an existing cluster; None starts one here and stops it in the end.
        cores: Of the one that is started; None for all.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigurationError: There is no cluster at ``address``.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        ray = import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "--engine ray needs Ray. Install it: pip install 'icl-optimizer[ray]'"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    folder = None if address else tempfile.mkdtemp(prefix="ray-", dir=_short())
    try:
        _connect(ray, address, cores, folder)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, address: str | None, cores: int | None, folder: str | None) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(
            # "local" even where the environment names a cluster
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=folder,
            **quiet,
        )
        return
    _refuse_silence(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"--ray-address is '{address}', and no cluster answers there ({error}). One that asks "
            "for a token is reached with RAY_AUTH_MODE=token in the environment."
        ) from error


def _refuse_silence(address: str) -> None:
    """Raise where nothing listens at ``HOST:PORT``; Ray itself may wait there for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        # Ray's own words, such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"--ray-address is '{address}', and nothing listens there ({error}); "
            "allowed: the address of a running cluster, as `ray start --head` prints it."
        ) from error


def _short() -> str | None:
    """Return where sockets may lie: their whole path has room for about 100 characters."""
    usual = tempfile.gettempdir()
    return "/tmp" if len(usual) > 20 and os.path.isdir("/tmp") else usual
