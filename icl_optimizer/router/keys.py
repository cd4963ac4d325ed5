"""The keys of those who may call the router, compared in constant time."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from icl_optimizer.errors import ConfigurationError
from icl_optimizer.llm.redaction import remember_secrets

SHORTEST = 16
"""Characters of a key; shorter ones can be guessed."""
_SCHEME = b"bearer "


@dataclass(frozen=True)
class Keys:
    """Who may call: the digests of all keys, never the keys themselves.

    Attributes:
        digests: SHA-256 of each key; none of them means that nobody needs one.
    """

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, keys: Iterable[str], origin: str = "keys") -> Keys:
        """Return the keys given as texts.

        Args:
            keys: Each of at least 16 printable ASCII characters without spaces.
            origin: Where they come from, for the message.

        Raises:
            ConfigurationError: One is too short or holds other characters; no key is quoted.
        """
        found = list(keys)
        for number, key in enumerate(found, start=1):
            if len(key) < SHORTEST or not (key.isascii() and key.isprintable() and " " not in key):
                raise ConfigurationError(
                    f"{origin}: key {number} of {len(found)} has {len(key)} characters; "
                    f"allowed: at least {SHORTEST}, printable ASCII without spaces."
                )
        remember_secrets(found)
        return cls(tuple(dict.fromkeys(sha256(key.encode()).digest() for key in found)))

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return bool(self.digests)

    def admit(self, authorization: bytes | None) -> bool:
        """Whether a caller with this ``Authorization`` header may come in.

        Takes the same time whichever key it is, and whether it is one.
        """
        if not self.required:
            return True
        given = authorization or b""
        key = given[len(_SCHEME) :].strip() if given[: len(_SCHEME)].lower() == _SCHEME else b""
        digest = sha256(key).digest()
        known = False
        for each in self.digests:
            known |= hmac.compare_digest(each, digest)
        return known


def load_keys(env: str | None = None, file: str | Path | None = None) -> Keys:
    """Return callers' keys from an environment variable or a file.

    Args:
        env: Name of a variable that holds keys, separated by commas or white space.
        file: One key in each line; empty lines and those that begin with ``#`` do not count.

    Raises:
        ConfigurationError: Both are given, nothing is there, or a key is not allowed.
    """
    if env is not None and file is not None:
        raise ConfigurationError("keys_env and keys_file are both given; allowed: one of them.")
    if env is not None:
        found = os.environ.get(env, "").replace(",", " ").split()
        return _some(found, f"the environment variable '{env}'")
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"keys_file is '{file}'; allowed: a file that exists.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return _some([line for line in lines if line and line[0] != "#"], f"the file '{file}'")
    return Keys()


def check_exposure(host: str, keys: Keys, *, open_to_all: bool) -> None:
    """Refuse to listen to other machines without keys, unless that was asked for.

    Raises:
        ConfigurationError: The host is not loopback, there are no keys, and it is not open.
    """
    if not keys.required and not open_to_all and not is_loopback(host):
        raise ConfigurationError(
            f"host is '{host}', which other machines can reach, and there are no keys; allowed: "
            "keys (keys_env or keys_file), 127.0.0.1, or open to all on purpose (--open)."
        )


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _some(keys: list[str], origin: str) -> Keys:
    if not keys:
        raise ConfigurationError(f"{origin} holds no key; allowed: one or more.")
    return Keys.of(keys, origin)


__all__ = ["SHORTEST", "Keys", "check_exposure", "is_loopback", "load_keys"]
