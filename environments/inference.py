"""How long a language model takes to generate: time to first token, time per output token."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icl_optimizer.errors import ConfigurationError, unknown_name


@dataclass(frozen=True)
class LlmProfile:
    """Latency and quality of one served model.

    Attributes:
        name: Name in ``data/llm_profiles.csv``.
        ttft_s: Time to first token, seconds.
        tpot_s: Time per output token, seconds.
        mmlu: Quality index: published MMLU accuracy, percent.
    """

    name: str
    ttft_s: float
    tpot_s: float
    mmlu: float

    def __post_init__(self) -> None:
        """Refuse times that are not positive."""
        if self.ttft_s < 0 or self.tpot_s <= 0:
            raise ConfigurationError(
                f"profile '{self.name}' has ttft_s={self.ttft_s}, tpot_s={self.tpot_s}; "
                "allowed: ttft_s >= 0 and tpot_s > 0."
            )


def generation_time(profile: LlmProfile, tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the seconds to generate ``tokens`` output tokens, ``TTFT + n TPOT``.

    Eq. (3) of Zhou et al. 2024. 1,000 tokens take 13.56 s with TTFT 0.23 s and TPOT 1/75 s.
    """
    return profile.ttft_s + np.asarray(tokens, dtype=np.float64) * profile.tpot_s


@cache
def load_profiles() -> dict[str, LlmProfile]:
    """Return the shipped profiles by name; sources are in ``data/SOURCES.md``."""
    text = files("icl_optimizer.environments.data").joinpath("llm_profiles.csv").read_text()
    return {
        row["name"]: LlmProfile(
            row["name"], float(row["ttft_s"]), float(row["tpot_s"]), float(row["mmlu"])
        )
        for row in csv.DictReader(text.splitlines())
    }


def find_profile(field: str, name: str) -> LlmProfile:
    """Return the profile ``name``, or raise an error that names ``field`` and the nearest one."""
    profiles = load_profiles()
    if name not in profiles:
        raise unknown_name(field, name, profiles)
    return profiles[name]
