"""What grading may cost: bounds on text and numbers, and a counter of steps.

The floor of the package. A bound is checked before the thing it bounds is built, and time is counted in steps of our
own code: no signal and no clock decides, so every thread and machine gives the same verdict.
"""

MAX_CHARACTERS = 4096  # of an answer
MAX_DEPTH = 64  # of brackets, and of operators that nest without them
MAX_ITEMS = 256  # of a list, or cells of a matrix
MAX_STRUCTURE = 8  # sets of tuples of ...
MAX_LITERAL = 4000  # digits in one number; Python itself refuses to read more than 4300
MAX_LOG10 = 10_000  # of a number that is computed, or of its denominator
MAX_STEPS = 100_000  # of one grade; a step is about a microsecond


class GaveUp(Exception):
    """The text is larger, deeper or costlier than the grader agrees to look at."""


class Unreadable(Exception):
    """The text is not mathematics that the parser knows; it can only be compared as text."""


class Steps:
    """The steps that are left for one grade."""

    __slots__ = ("left",)

    def __init__(self, limit: int = MAX_STEPS) -> None:
        self.left = limit

    def spend(self, steps: int) -> None:
        """Count `steps`; raises GaveUp when none are left."""
        self.left -= steps
        if self.left < 0:
            raise GaveUp("a comparison that takes too many steps")


def words(text: str) -> frozenset[str]:
    """Return the words of a text: how the vocabularies of the package are written down."""
    return frozenset(text.split())
