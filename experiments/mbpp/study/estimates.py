"""Estimates and their intervals. All intervals are at 95 %."""
import math
import random

Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 10000


def wilson(passed, count):
    """The score interval of a share (Wilson 1927, JASA 22:209): tasks as independent trials."""
    share = passed / count
    middle = share + Z * Z / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    scale = 1 + Z * Z / count
    # At 0 and `count` the bounds are 0 and 1 exactly; rounding must not say otherwise.
    low = 0.0 if passed == 0 else (middle - half) / scale
    high = 1.0 if passed == count else (middle + half) / scale
    return low, high


def pass_at_k(samples, correct, k):
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) for one task (Chen et al. 2021,
    arXiv:2107.03374, as in EvalPlus 0.3.1, evalplus/eval/__init__.py)."""
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} in {samples}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean(values):
    return math.fsum(values) / len(values)


def bootstrap(values, seed=0):
    """The percentile interval of the mean, over tasks drawn with replacement."""
    source = random.Random(seed)
    means = sorted(mean(source.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def percentile(values, share):
    """The nearest-rank percentile: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
