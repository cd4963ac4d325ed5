"""What a bank keeps of each expert and of each request, as numpy records."""

import numpy as np

EXPERT = np.dtype(
    [
        # end of the iteration under way, or where the next one begins
        ("time", np.float64),
        # how long the iteration under way lasts, 0 if none is, and the share of each sequence
        ("span", np.float64),
        ("share", np.float64),
        # what one sequence that was there all along would have been charged
        ("gpu", np.float64),
        ("busy", np.float64),
        ("running", np.int64),
        ("waiting", np.int64),
        # those of the running that are prefilled, always the first ones; tokens in their caches
        ("decoding", np.int64),
        ("cached", np.int64),
        # iterations so far, and after which of them the next request leaves
        ("steps", np.int64),
        ("next_due", np.int64),
        ("kv", np.int64),
    ]
)
REQUEST = np.dtype(
    [
        ("arrival", np.float64),
        ("first_token", np.float64),
        ("finish", np.float64),
        ("gpu", np.float64),
        ("prompt", np.int64),
        ("answer", np.int64),
        # prompt tokens still to prefill, and the iteration after which it leaves
        ("left", np.int64),
        ("due", np.int64),
        ("generated", np.int64),
        ("sent", np.int64),
    ]
)
