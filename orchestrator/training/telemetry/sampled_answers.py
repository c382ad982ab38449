"""Metrics of several sampled answers to each held-out prompt: whether one of them is correct (pass@k), and
whether the majority is (maj@k).

A worked example: four answers to one prompt, of which the second and the fourth are correct:

    answers   "7"  "12"  ""  "12"
    pass@1    1 - C(2, 1) / C(4, 1) = 1/2
    pass@2    1 - C(2, 2) / C(4, 2) = 5/6
    pass@4    1
    maj@4     1: "12" has two votes of three
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.telemetry.summary import ACCURACY, Mean, merged


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the probability that at least one of k answers is correct, drawn without replacement from
    `samples` answers of which `right` are: 1 - C(n - c, k) / C(n, k), an unbiased estimate for k
    independent answers.

    Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1. Raises ValueError for a k
    outside 1 to `samples`.

    >>> pass_at_k(samples=4, right=2, k=1), pass_at_k(samples=4, right=3, k=2)
    (0.5, 1.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k: got {k}, allowed: 1 to {samples}, the number of samples")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str]) -> int | None:
    """Return the first index of the answer with the most votes. Ties go to the answer that is given first;
    empty answers have no vote. None if all answers are empty.

    Self-consistency, Wang et al. 2022, https://arxiv.org/abs/2203.11171.

    >>> majority(["7", "12", "", "12"]), majority(["b", "a", "a", "b"])
    (1, 0)
    """
    # A Counter lists equally frequent items in the order in which they were first counted.
    ranking = Counter(answer for answer in answers if answer).most_common(1)
    return answers.index(ranking[0][0]) if ranking else None


def shown_ks(samples: int) -> list[int]:
    """List the k of pass@k that are reported: the powers of two below `samples`, and `samples`.

    >>> shown_ks(6), shown_ks(8)
    ([1, 2, 4, 6], [1, 2, 4, 8])
    """
    return [1 << power for power in range((samples - 1).bit_length())] + [samples]


def sampled_answer_means(rollouts: RolloutBlock, scores: ScoreBlock) -> dict[str, Mean]:
    """Sum `pass_at_<k>` and `maj_at_<G>` over the block's prompts, with G answers each.

    Answers that could not be scored are left out: pass@k of a prompt is then computed from fewer samples, and
    is omitted if there are fewer than k. maj@G counts as wrong if no response has an answer; it is omitted if
    the scores have no answers. Empty for a rubric without accuracy.
    """
    if ACCURACY not in scores.components:
        return {}
    sums: dict[str, Mean] = {}
    size = rollouts.group_size
    for first in range(0, len(rollouts), size):
        rows = first + np.flatnonzero(scores.grades[first : first + size] == ScoreStatus.OK)
        right = [bool(scores.components[ACCURACY][row] >= 1) for row in rows]
        answers = None if scores.answers is None else [scores.answers[row] for row in rows]
        values = prompt_values(size, right, answers)
        sums = merged(sums, {name: Mean(value, 1) for name, value in values.items()})
    return sums


def prompt_values(size: int, right: Sequence[bool], answers: Sequence[str] | None) -> dict[str, float]:
    """Compute the values of one prompt with `size` answers, from those that were scored."""
    values = {f"pass_at_{k}": pass_at_k(len(right), sum(right), k) for k in shown_ks(size) if k <= len(right)}
    if answers is not None and right:
        winner = majority(answers)
        values[f"maj_at_{size}"] = 0.0 if winner is None else float(right[winner])
    return values
