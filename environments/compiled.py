"""Loops over many sub-environments, compiled by numba.

Importing this module loads the compiler, which takes half a second; who uses a compiled loop
imports its module where it first needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

from numba import njit

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*, fastmath: Collection[str] = ()) -> Callable[[Loop], Loop]:
    """Compile a function on its first call; it runs without the interpreter's lock.

    The machine code is kept beside the source or in the user's cache folder, so that only the
    first process waits for it; where neither can be written, every process compiles.

    Args:
        fastmath: Freedoms of LLVM in floating point, as numba names them; none by default, so
            that results do not depend on how a loop is cut.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def decorate(function: Loop) -> Loop:
        try:
            return cast(Loop, njit(cache=True, **options)(function))
        except RuntimeError:  # no folder to keep the code in
            return cast(Loop, njit(**options)(function))

    return decorate
