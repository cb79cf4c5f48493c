"""Row formats that are not ours, turned into our columns: Alpaca, ShareGPT, FLAN, ARC, Orca and UltraFeedback pairs.

Floor 1. One visible dict, FORMATS; a file is in the first of them whose columns it has, unless it has TRL's columns of
prompts and completions or of conversations. What a conversion returns goes through the same checks as every row.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.choices import arc_record
from posttrain.data.files import Entry, Fault, Malformed, Record
from posttrain.data.rows import WANTED_SCHEMAS, Kind, kind_of

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "observation": "tool",
}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format: the columns that show it, the kind of its rows, and how a record becomes one of TRL's."""

    columns: tuple[str, ...]
    kind: Kind
    convert: Callable[[Record], Record]  # raises Malformed


def format_of(columns: Collection[str], wanted: Collection[Kind] = ()) -> Format | None:
    """Return the format of rows with these columns, None when they are ours; pairs and choices only where wanted."""
    if kind_of(columns, wanted) in ("messages", "prompt_completion", "unpaired", "choices"):
        return None
    return next(
        (
            each
            for each in FORMATS.values()
            if set(each.columns) <= set(columns) and (each.kind not in WANTED_SCHEMAS or each.kind in wanted)
        ),
        None,
    )


def alpaca(record: Record) -> Record:
    """Read Alpaca: instruction with an optional input, and its output; earlier turns in `history`, `system` before."""
    instruction, context = _text(record, "instruction"), _text(record, "input", optional=True)
    turns = []
    if system := _text(record, "system", optional=True):
        turns.append({"role": "system", "content": system})
    for number, pair in enumerate(record.get("history") or []):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise Malformed(Fault.TYPE, f"history[{number}] is no pair of a question and its answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    turns.append({"role": "user", "content": f"{instruction}\n\n{context}" if context else instruction})
    reply = [{"role": "assistant", "content": _text(record, "output")}]
    return {**_further(record, "instruction", "input", "output", "system", "history"), **_pair(turns, completion=reply)}


def sharegpt(record: Record) -> Record:
    """Read ShareGPT: `conversations` of turns with `from` and `value`, or with `role` and `content`."""
    value = record.get("conversations")
    if not isinstance(value, list | tuple):
        raise Malformed(Fault.TYPE, f"conversations is {type(value).__name__}")
    turns = [_sharegpt_turn(turn, f"conversations[{index}]") for index, turn in enumerate(value)]
    if system := _text(record, "system", optional=True):
        turns.insert(0, {"role": "system", "content": system})
    return {**_further(record, "conversations", "system"), "messages": turns}


def flan(record: Record) -> Record:
    """Read FLAN and T0: `inputs` and `targets`, plain text both."""
    prompt, completion = _text(record, "inputs"), _text(record, "targets")
    return {**_further(record, "inputs", "targets"), "prompt": prompt, "completion": completion}


def orca_pair(record: Record) -> Record:
    """Read Orca DPO pairs: system, question, and two answers in plain text."""
    turns = [{"role": "user", "content": _text(record, "question")}]
    if system := _text(record, "system", optional=True):
        turns.insert(0, {"role": "system", "content": system})
    answers = {name: [{"role": "assistant", "content": _text(record, name)}] for name in ("chosen", "rejected")}
    return {**_further(record, "system", "question", "chosen", "rejected"), **_pair(turns, **answers)}


def ultrafeedback_pair(record: Record) -> Record:
    """Read binarized UltraFeedback: two whole conversations, which both begin with the prompt."""
    return _further(record, "prompt", "messages")


def ultrafeedback_best_and_worst(record: Record) -> Record:
    """Read raw UltraFeedback: of several scored completions the best is chosen, the worst rejected.

    The margin is the difference of their overall scores. Rows whose scores do not differ have no pair, and are left
    out.
    """
    completions = record.get("completions")
    if not isinstance(completions, list | tuple) or not all(isinstance(each, Mapping) for each in completions):
        raise Malformed(Fault.TYPE, f"completions is {type(completions).__name__}, not a list of completions")
    scored = [
        (_number(each["overall_score"], "overall_score"), _text(each, "response"))
        for each in completions
        if each.get("overall_score") is not None
    ]
    if not scored or max(scored)[0] == min(scored)[0]:
        raise Malformed(Fault.SAME, "no two completions with different scores")
    best, worst = max(scored, key=lambda each: each[0]), min(scored, key=lambda each: each[0])
    prompt = [{"role": "user", "content": _text(record, "instruction")}]
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, (_, text) in {"chosen": best, "rejected": worst}.items()
    }
    kept = _further(record, "instruction", "completions")
    return {**kept, **_pair(prompt, **answers), "margin": best[0] - worst[0]}


def hh_rlhf_pair(record: Record) -> Record:
    r"""Read HH-RLHF: two transcripts of `\n\nHuman:` and `\n\nAssistant:` turns, as conversations."""
    return {
        **_further(record, "chosen", "rejected"),
        **{name: transcript(_text(record, name), name) for name in ("chosen", "rejected")},
    }


FORMATS: dict[str, Format] = {
    "ultrafeedback_binarized": Format(
        ("chosen", "rejected", "score_chosen", "score_rejected"), "preference", ultrafeedback_pair
    ),
    "arc": Format(("question", "choices", "answerKey"), "choices", arc_record),
    "orca_dpo": Format(("question", "chosen", "rejected"), "preference", orca_pair),
    "ultrafeedback": Format(("instruction", "completions"), "preference", ultrafeedback_best_and_worst),
    "alpaca": Format(("instruction", "output"), "prompt_completion", alpaca),
    "sharegpt": Format(("conversations",), "messages", sharegpt),
    "flan": Format(("inputs", "targets"), "prompt_completion", flan),
}


# --- OpenAssistant: rows are single messages of trees ----------------------------------------------------------


def oasst_conversations(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Yield one conversation for each OpenAssistant tree: at every turn the reply that people ranked first."""
    yield from _oasst(entries, _best_path)


def oasst_pairs(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Yield a pair for each prompt of an OpenAssistant tree with two ranked replies: the first against the last."""
    yield from _oasst(entries, _ranked_pairs)


Replies = Mapping[str, Sequence[Record]]  # by the id of the message they answer, best first


def _oasst(entries: Iterator[Entry], read: Callable[[Record, Replies], Iterator[Record]]) -> Iterator[Entry]:
    roots: list[tuple[str, Record]] = []
    replies: defaultdict[str, list[Record]] = defaultdict(list)
    for origin, record in entries:
        fault = record if isinstance(record, Malformed) else _oasst_fault(record)
        if fault is not None:
            yield origin, fault
        elif isinstance(record, dict) and record.get("parent_id") is None:
            roots.append((origin, record))
        elif isinstance(record, dict) and not record.get("deleted"):
            replies[record["parent_id"]].append(record)
    for siblings in replies.values():
        siblings.sort(key=lambda record: (record.get("rank") is None, record.get("rank") or 0.0))
    for origin, root in roots:
        for found in read(root, replies):
            yield origin, {"lang": root.get("lang"), **found}


def _oasst_fault(record: Record) -> Malformed | None:
    for name in ("message_id", "text"):
        if not isinstance(record.get(name), str):
            return Malformed(Fault.TYPE, f"{name} is {type(record.get(name)).__name__}")
    if record.get("role") not in OASST_ROLES:
        return Malformed(Fault.ROLE, f"role is {record.get('role')!r}, expected one of {', '.join(OASST_ROLES)}")
    return None


def _best_path(root: Record, replies: Replies) -> Iterator[Record]:
    turns, message = [_oasst_turn(root)], root
    while best := replies.get(message["message_id"]):
        message = best[0]
        turns.append(_oasst_turn(message))
    if turns[-1]["role"] == "user":
        turns.pop()  # nobody answered it
    if turns:
        yield {"messages": turns}


def _ranked_pairs(root: Record, replies: Replies) -> Iterator[Record]:
    open_paths = [(root, [_oasst_turn(root)])]
    while open_paths:
        message, turns = open_paths.pop()
        answers = replies.get(message["message_id"], [])
        ranked = [answer for answer in answers if answer.get("rank") is not None]
        if message["role"] == "prompter" and len(ranked) > 1:
            first, last = [_oasst_turn(ranked[0])], [_oasst_turn(ranked[-1])]
            yield _pair(turns, chosen=first, rejected=last)
        open_paths += [(answer, [*turns, _oasst_turn(answer)]) for answer in reversed(answers)]


def _oasst_turn(record: Record) -> dict[str, str]:
    return {"role": OASST_ROLES[record["role"]], "content": record["text"]}


# --- parts -----------------------------------------------------------------------------------------------------


def _pair(prompt: Sequence[Mapping[str, Any]], **completions: Sequence[Mapping[str, Any]]) -> Record:
    return {"prompt": list(prompt), **{name: list(turns) for name, turns in completions.items()}}


def _text(record: Mapping[str, Any], name: str, *, optional: bool = False) -> str:
    value = record.get(name)
    if value is None:
        if optional:
            return ""
        raise Malformed(Fault.COLUMN, f'no "{name}"')
    if not isinstance(value, str):
        raise Malformed(Fault.TYPE, f"{name} is {type(value).__name__}")
    return value


def _number(value: Any, name: str) -> float:
    try:
        return float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        raise Malformed(Fault.TYPE, f"{name} is {str(value)[:40]!r}, not a number") from None


def _further(record: Record, *used: str) -> Record:
    return {name: value for name, value in record.items() if name not in used and value is not None}


def _sharegpt_turn(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise Malformed(Fault.TYPE, f"{name} is {type(turn).__name__}")
    role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if role not in SHAREGPT_ROLES:
        raise Malformed(Fault.ROLE, f"{name}.from is {role!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[role], "content": content}


def transcript(text: str, name: str) -> list[dict[str, str]]:
    r"""Return the turns of a text of `\n\nHuman:` and `\n\nAssistant:`, as HH-RLHF writes them."""
    before, *parts = HH_TURN.split(text)
    if before.strip() or not parts:
        raise Malformed(Fault.TURNS, rf'{name} does not begin with "\n\nHuman:"')
    turns: list[dict[str, str]] = []
    for speaker, said in zip(parts[0::2], parts[1::2], strict=True):
        if turns and turns[-1]["role"] == HH_ROLES[speaker]:  # a turn in two pieces: no template has that
            turns[-1]["content"] += f"\n\n{said.strip()}"
        else:
            turns.append({"role": HH_ROLES[speaker], "content": said.strip()})
    return turns
