"""How much the samples of one problem differ from each other, and whether a model lost that.

Pure Python and numpy; a word is what stands between white space, in lower case. Distinct n-grams: Li et al. 2016, "A
Diversity-Promoting Objective Function for Neural Conversation Models", arXiv 1510.03055. They fall with length and with
the number of samples. Self-similarity does not depend on the number of samples, and is what models are compared by.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from posttrain.evals.stats import Interval, mean_interval, no_gain_p, paired_difference, share_interval
from posttrain.evals.verdicts import Claim
from posttrain.rewards.texts import repetition
from posttrain.settings.rewards import RepetitionOptions

LOOP = 0.5  # share of a completion's runs of LOOP_WORDS words that are repeats, from which it loops
LOOP_WORDS = 4
PAIR_WORDS = 2  # of the runs by which two completions are compared
COLLAPSE = 0.1  # rise in self-similarity below which no collapse is claimed

Grams = set[tuple[str, ...]]


class Diversity(NamedTuple):
    """Of one problem's completions, or the means over problems."""

    distinct_1: float  # different words over words
    distinct_2: float  # different runs of 2 words over such runs
    distinct_3: float
    self_similarity: float  # 1: all completions have the same runs of 2 words; 0: no two share any
    duplicates: float  # share of completions that repeat an earlier one letter for letter
    looping: float  # share of completions of which LOOP or more is repeats
    mean_length: float  # tokens
    length_spread: float  # standard deviation, tokens


def diversity(completions: Sequence[str], lengths: Sequence[int]) -> Diversity:
    """Return the diversity of n >= 2 completions of one problem, with their lengths in tokens.

    Self-similarity is the mean over pairs of completions of 2 |A and B| / (|A| + |B|), A and B the sets of their runs
    of two words (Dice 1945). Self-BLEU (Zhu et al. 2018) asks much the same; but it rises with the number of samples,
    which all serve as references, and takes smoothing and a brevity penalty. Raises ValueError for fewer than 2.
    """
    if len(completions) < 2:
        raise ValueError(f"diversity needs at least 2 completions of a problem, not {len(completions)}")
    words = [completion.lower().split() for completion in completions]
    sets = [set(_grams(each, PAIR_WORDS)) for each in words]
    repeats = repetition(RepetitionOptions(ngram_size=LOOP_WORDS), [], completions)
    return Diversity(
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        distinct_3=_distinct(words, 3),
        self_similarity=float(np.mean([_dice(a, b) for a, b in combinations(sets, 2)])),
        duplicates=1 - len(set(completions)) / len(completions),
        looping=float(np.mean([score is not None and -score >= LOOP for score in repeats])),
        mean_length=float(np.mean(lengths)),
        length_spread=float(np.std(lengths, ddof=1)),
    )


def mean_diversity(problems: Sequence[Diversity], samples: int) -> dict[str, tuple[float, Interval]]:
    """Return the mean of each measure over one or more problems of `samples` completions, and its 95% interval."""
    columns = dict(zip(Diversity._fields, np.array(problems).T, strict=True))
    shares = ("duplicates", "looping")  # of completions, often none: an interval must not be a point
    return {
        name: (
            float(values.mean()),
            share_interval(values, samples) if name in shares else mean_interval(values[:, None]),
        )
        for name, values in columns.items()
    }


def mode_collapse(before: Sequence[Diversity], after: Sequence[Diversity]) -> Claim:
    """Return the claim that samples of a problem became more alike; a rise below COLLAPSE is none.

    Both models' problems are the same, in the same order, and sampled alike: temperature changes what is measured.
    Samples that agree because they are right are alike too; the share of duplicates is told beside.
    """
    a, b = (np.array([problem.self_similarity for problem in model]) for model in (before, after))
    found = paired_difference(a, b, samples=None)
    duplicates = [float(np.mean([problem.duplicates for problem in model])) for model in (before, after)]
    facts = (
        f"similarity of two samples of a problem {a.mean():.2f} to {b.mean():.2f} "
        f"({found.mean:+.2f} [{found.interval.low:+.2f}, {found.interval.high:+.2f}]), "
        f"duplicates {duplicates[0]:.0%} to {duplicates[1]:.0%}"
    )
    p = no_gain_p(b, a, 0.0, samples=None) if found.mean >= COLLAPSE else 1.0
    return Claim(p, f"less diverse: {facts}", f"no loss of diversity shown: {facts}")


def _grams(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Yield the runs of `size` words; a shorter text is one run."""
    for start in range(max(1, len(words) - size + 1)):
        yield tuple(words[start : start + size])


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float:
    grams = list(chain.from_iterable(_grams(words, size) for words in texts))
    return len(set(grams)) / len(grams)


def _dice(a: Grams, b: Grams) -> float:
    return 2 * len(a & b) / (len(a) + len(b))
