"""The last tier: sympy, in a child that forks for each question and can be killed.

Rare: sums, products, integrals, limits, special functions, and what no other tier could decide. The child imports
sympy once and forks; each question has a fork of its own, with limits on its calls, its memory and its CPU time, so
nothing that one question does reaches the next, and the same question ends at the same call. Expressions go to it as
JSON and never as text that anything evaluates.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from posttrain.rewards.math_answers.limits import GaveUp
from posttrain.rewards.math_answers.tree import Node, fold

CHILD = Path(__file__).with_name("symbolic_child.py")
START_SECONDS = 30.0  # the child imports sympy
ANSWER_SECONDS = 5.0  # the child ends its fork long before
MAX_NODES = 400
MAX_NUMBER_BITS = 4096


def ask(first: Node, second: Node) -> bool | None:
    """Return whether sympy finds two expressions equal, None where it cannot say; raises GaveUp at its limits."""
    answer = _CHILDREN.ask({"first": encoded(first), "second": encoded(second)})
    if answer in ("equal", "different"):
        return answer == "equal"
    if answer == "unknown":
        return None
    raise GaveUp(f"a symbolic comparison: {answer}")


def encoded(root: Node) -> list[list[Any]]:
    """Return a tree as a list of its nodes, arguments before what takes them: head, value, number of arguments."""
    rows: list[list[Any]] = []

    def visit(each: Node, parts: list[None]) -> None:
        value: Any = each.value
        if each.head == "number":
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_NUMBER_BITS:
                raise GaveUp("a number too large for a symbolic comparison")
            value = [str(value.numerator), str(value.denominator)]
        rows.append([each.head, value, len(parts)])

    fold(root, visit)
    if len(rows) > MAX_NODES:
        raise GaveUp("an expression too large for a symbolic comparison")
    return rows


class _Children:
    """One child for this process, started when first needed and again after it fails or the process forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, question: Any) -> str:
        with self._lock:
            try:
                child = self._ready()
                assert child.stdin is not None
                child.stdin.write(json.dumps(question).encode() + b"\n")
                child.stdin.flush()
                return self._line(child, ANSWER_SECONDS)
            except (OSError, ValueError) as error:
                self._stop()
                return f"its process failed ({type(error).__name__})"

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is not None and (self._owner != os.getpid() or self._child.poll() is not None):
            self._child = None  # another process's, or dead
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy orders by hashes
            )
            self._owner = os.getpid()
            if self._line(self._child, START_SECONDS) != "ready":
                raise OSError("the symbolic child did not start")
        return self._child

    def _line(self, child: subprocess.Popen[bytes], seconds: float) -> str:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], seconds)
        line = child.stdout.readline() if readable else b""
        if not line.endswith(b"\n"):
            raise OSError("the symbolic child is silent")
        return line.decode().strip()

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()

    def close(self) -> None:
        """End the child; a later question starts another."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """In a forked process: the child and the lock are the parent's."""
        self._lock = threading.Lock()
        self._child = None


_CHILDREN = _Children()
atexit.register(_CHILDREN.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CHILDREN.forget)
