"""Fields of configurations that hold several values, which may be given with commas between."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def split_commas(value: Any) -> Any:
    """Return text as a tuple of its parts, one number as a tuple, and all else as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value,)
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(split_commas)]
