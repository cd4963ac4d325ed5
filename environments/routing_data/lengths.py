"""Answer tokens of a request, predicted from its prompt tokens by a small table.

The table is a regression tree that :mod:`.predictors` learned on the first 70 % of the Azure
conversation trace, so its predictions are means of that service's answers, in tokens.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from icl_optimizer.environments.routing_data.questions import read_shipped
from icl_optimizer.errors import ConfigurationError

LENGTHS_FILE = "answer_lengths.csv"
TRACE = "azure-conversation"
TRAIN_SHARE = 0.7
"""Share of the trace, from its beginning, that the table is learned from."""


def predict_answer_tokens(prompt_tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the expected number of answer tokens, same shape, positive.

    Args:
        prompt_tokens: Tokens of prompts, any shape, 0 and more.

    Raises:
        ConfigurationError: A number of tokens is negative or not a number.
    """
    prompts = np.asarray(prompt_tokens, dtype=np.float64)
    if not (valid := prompts >= 0).all():
        wrong = prompts[~valid].flat[0]
        raise ConfigurationError(f"prompt_tokens holds {wrong:g}; allowed: 0 and more.")
    return look_up(_table(), prompts)


def look_up(table: pd.DataFrame, prompt_tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the answer tokens of the bin of each prompt; a bin holds its upper end."""
    # what is longer than every inner end is in the last bin, which has none
    inner = table["prompt_tokens_up_to"].to_numpy(dtype=np.float64)[:-1]
    expected = table["answer_tokens"].to_numpy(dtype=np.float64)
    return expected[np.searchsorted(inner, prompt_tokens)]


@cache
def _table() -> pd.DataFrame:
    return read_shipped(LENGTHS_FILE)
