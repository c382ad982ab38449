"""DAPO's soft overlong punishment: a gradient against length where the length limit comes near."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlong_punishment(lengths: NDArray[np.int64], max_new_tokens: int, buffer: int) -> NDArray[np.float64]:
    """What is added to each reward, [N]: 0 up to `max_new_tokens - buffer` tokens, then linearly down to -1
    at the limit.

    Equation 13 of DAPO (arXiv 2503.14476) with L_max = `max_new_tokens` and L_cache = `buffer`, for 0 <
    buffer <= max_new_tokens.

    >>> overlong_punishment(np.array([60, 75, 90, 100]), max_new_tokens=100, buffer=40).tolist()
    [0.0, -0.375, -0.75, -1.0]
    """
    return np.clip((max_new_tokens - buffer - lengths) / buffer, -1.0, 0.0)
