"""The nano task: multi-step arithmetic word problems, generated deterministically in three disjoint splits.

Floor 0, standard library only. A problem is a chain of 1 to 4 operations on a running count (+, -, *, exact
division), every intermediate result between 1 and 1,999. The split of a problem is decided by a hash of its
arithmetic, not of its wording, so that no chain of numbers stands in two splits.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from posttrain.seeds import derive_seed

SPLITS = ("train", "validation", "test")
LEVELS = (1, 2, 3, 4)  # operations in the chain
LARGEST = 1999  # of all results

_NAMES = {
    "She": ("Mia", "Anna", "Lucy", "Nora", "Ivy", "Rosa", "Emma", "Zoe", "Clara", "Ella"),
    "He": ("Tom", "Ben", "Sam", "Leo", "Max", "Omar", "Jack", "Hugo", "Finn", "Ravi"),
}
_ITEMS = (
    *("apples", "pens", "books", "coins", "stamps", "cards", "shells", "marbles", "stickers", "beads"),
    *("nuts", "eggs", "roses", "bricks", "keys", "cups", "toys", "plums", "pears", "buttons"),
)
_BOXES = ("boxes", "bags", "jars", "crates", "baskets", "shelves")
_FRIENDS = ("a friend", "a cousin", "a neighbour", "the teacher", "a brother", "a sister")

_STARTS = (
    "{name} has {a} {items}.",
    "There are {a} {items} on {name}'s table.",
    "{name} starts the day with {a} {items}.",
    "{name} owns {a} {items}.",
    "A shop sells {name} {a} {items}.",
)
_PRODUCT_STARTS = (
    "{name} has {b} {boxes} with {a} {items} in each.",
    "{name} fills {b} {boxes}, each with {a} {items}.",
    "There are {b} {boxes} of {a} {items} in {name}'s room.",
)
_CLAUSES = {
    "+": (
        "{pronoun} buys {b} more {items}.",
        "Then {friend} gives {name} {b} {items}.",
        "{pronoun} finds another {b}.",
        "Later {name} wins {b} more.",
        "{name} adds {b} {items} from home.",
    ),
    "-": (
        "{pronoun} gives {b} {items} to {friend}.",
        "Then {name} loses {b} of them.",
        "{pronoun} sells {b} {items}.",
        "{b} of the {items} break.",
        "After that, {friend} takes away {b}.",
    ),
    "*": (
        "Then the number of {items} grows to {b} times what it was.",
        "{name} trades them all for {b} times as many {items}.",
        "By the next week {name} has {b} times as many.",
        "A prize multiplies {name}'s {items} by {b}.",
    ),
    "/": (
        "{pronoun} splits them equally among {b} {boxes} and keeps only one of these.",
        "{name} shares them evenly with a group of {b}, {name} included.",
        "{pronoun} divides the {items} into {b} equal piles and takes one pile.",
        "Only one {items_part} in {b} is kept.",
    ),
}
_QUESTIONS = (
    "How many {items} does {name} have now?",
    "How many {items} are left with {name}?",
    "What is the number of {items} that {name} has at the end?",
    "Find how many {items} {name} has.",
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a chain: `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operator}{self.right}={self.result}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem with the chain of operations that solves it."""

    question: str
    operations: tuple[Operation, ...]

    @property
    def answer(self) -> int:
        return self.operations[-1].result

    @property
    def level(self) -> int:
        return len(self.operations)

    @property
    def split(self) -> str:
        return split_of(self.operations)


def apply(operator: str, left: int, right: int) -> int:
    """Compute `left operator right`; division is exact by construction."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left // right
        case _:
            raise ValueError(f"expected one of + - * /, got {operator!r}")


def split_of(operations: tuple[Operation, ...]) -> str:
    """Return the split that a chain belongs to: 90% train, 5% validation, 5% test."""
    chain = ";".join(map(str, operations))
    bucket = hashlib.blake2b(chain.encode(), digest_size=2).digest()[0] % 20
    return {0: "validation", 1: "test"}.get(bucket, "train")


def problems(split: str, *, seed: int, levels: tuple[int, ...] = LEVELS) -> Iterator[Problem]:
    """Yield an endless stream of problems of one split, levels drawn evenly, without repeated chains."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {split!r}")
    draw = random.Random(derive_seed(seed, "nano-problems", split))
    seen: set[tuple[Operation, ...]] = set()
    while True:
        operations = _chain(draw, draw.choice(levels))
        if split_of(operations) == split and operations not in seen:
            seen.add(operations)
            yield Problem(_question(draw, operations), operations)


def _chain(draw: random.Random, level: int) -> tuple[Operation, ...]:
    """Draw a chain of `level` operations whose every result lies between 1 and LARGEST."""
    value = draw.randint(2, 99) if draw.random() < 0.5 else draw.randint(100, 999)
    chain: list[Operation] = []
    while len(chain) < level:
        operator = draw.choice("++--**//")
        right = _right_operand(draw, operator, value)
        if right is None:
            continue
        result = apply(operator, value, right)
        chain.append(Operation(value, operator, right, result))
        value = result
    return tuple(chain)


def _right_operand(draw: random.Random, operator: str, value: int) -> int | None:
    """Draw the second operand, or None where the operator does not fit the value."""
    match operator:
        case "+":
            most = min(99 if draw.random() < 0.4 else 999, LARGEST - value)
            return draw.randint(2, most) if most >= 2 else None
        case "-":
            return draw.randint(1, min(value - 1, 999)) if value > 2 else None
        case "*":
            most = min(9, LARGEST // value)
            return draw.randint(2, most) if most >= 2 else None
        case _:
            divisors = [d for d in range(2, 10) if value % d == 0 and value // d >= 2]
            return draw.choice(divisors) if divisors else None


def _question(draw: random.Random, operations: tuple[Operation, ...]) -> str:
    """Put a chain into words; a leading multiplication may become a start of several boxes."""
    pronoun = draw.choice(tuple(_NAMES))
    items = draw.choice(_ITEMS)
    words = {
        "pronoun": pronoun,
        "name": draw.choice(_NAMES[pronoun]),
        "items": items,
        "items_part": items.removesuffix("s"),
        "boxes": draw.choice(_BOXES),
    }
    first = operations[0]
    product_start = first.operator == "*" and draw.random() < 0.6
    start = draw.choice(_PRODUCT_STARTS if product_start else _STARTS)
    sentences = [start.format(a=first.left, b=first.right, **words)]
    for operation in operations[1:] if product_start else operations:
        clause = draw.choice(_CLAUSES[operation.operator])
        sentences.append(clause.format(b=operation.right, friend=draw.choice(_FRIENDS), **words))
    sentences.append(draw.choice(_QUESTIONS).format(**words))
    return " ".join(sentences)


def rows(split: str, count: int | None, *, seed: int) -> list[dict[str, object]]:
    """Return dataset rows of the nano task: question, answer, solution, level.

    The validation and test splits are the same for every seed, so that evaluations compare; `count` defaults to 1,000.
    The solution is written in the styles of the demonstrations (`solutions.demonstration`).
    """
    from posttrain.nano.solutions import demonstration

    stream_seed = seed if split == "train" else 0
    return [
        {
            "question": problem.question,
            "answer": str(problem.answer),
            "solution": demonstration(problem, seed=derive_seed(stream_seed, "nano-solution", index)),
            "level": problem.level,
        }
        for index, problem in enumerate(islice(problems(split, seed=stream_seed), count or 1000))
    ]
