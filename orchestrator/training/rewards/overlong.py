"""DAPO's soft overlong punishment: penalises responses whose length approaches the limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlong_punishment(
    lengths: NDArray[np.int64], limits: NDArray[np.int32] | int, buffer: int
) -> NDArray[np.float64]:
    """Compute what is added to each reward, [N]: 0 up to `limit - buffer` tokens, then linearly down
    to -1 at the limit.

    Equation 13 of DAPO (arXiv 2503.14476) with L_max = limit and L_cache = `buffer` > 0. The limit of a
    rollout is `max_new_tokens`, or less if the context ends earlier. A limit below `buffer` shortens the
    buffer, so that an empty response is never punished.

    >>> overlong_punishment(np.array([60, 75, 90, 100]), limits=100, buffer=40).tolist()
    [0.0, -0.375, -0.75, -1.0]
    >>> overlong_punishment(np.array([26, 26]), np.array([26, 100]), buffer=40).tolist()
    [-1.0, 0.0]
    """
    buffers = np.maximum(np.minimum(buffer, limits), 1)
    return np.clip((limits - buffers - lengths) / buffers, -1.0, 0.0)
