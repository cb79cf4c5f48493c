"""How a question becomes a prompt, and a worked solution the completion that answers it, by named style.

Floor 1. Pure text; a style gives a string, or messages for the chat template. The r1_zero format is that of
DeepSeek-R1 (arXiv 2501.12948, table 1), in other words, with the opening <think> given in the prompt.
"""

from collections.abc import Callable

from posttrain.records import Message

Text = str | tuple[Message, ...]

R1_ZERO_PREAMBLE = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
    "The Assistant first thinks the question through, step by step, and then gives the User the answer. "
    "The thinking stands between <think> and </think> and the answer between <answer> and </answer>, "
    "like this: <think> thinking goes here </think> <answer> answer goes here </answer>."
)
BOXED_INSTRUCTION = r"Reason step by step, and put your final answer in \boxed{}."
OPENINGS = {"r1_zero": f"{R1_ZERO_PREAMBLE}\n"}  # what prompts of a style begin with, and examples do not repeat


def _r1_zero(question: str) -> Text:
    return f"{OPENINGS['r1_zero']}User: {question}\nAssistant: <think>"


def _nano(question: str) -> Text:
    return f"User: {question}\nAssistant: <think>"


def _boxed(question: str) -> Text:
    return (Message(role="user", content=f"{question}\n\n{BOXED_INSTRUCTION}"),)


def _question(question: str) -> Text:
    return question


def _chat(question: str) -> Text:
    return (Message(role="user", content=question),)


PROMPT_STYLES: dict[str, Callable[[str], Text]] = {
    "r1_zero": _r1_zero,
    "nano": _nano,
    "boxed": _boxed,
    "question": _question,
    "chat": _chat,
}


def _tagged_completion(reasoning: str, answer: str) -> Text:
    return f" {reasoning} </think> <answer>{answer}</answer>"


def _boxed_reply(reasoning: str, answer: str) -> Text:
    return (Message(role="assistant", content=end_with_boxed(reasoning, answer)),)


def _boxed_text(reasoning: str, answer: str) -> Text:
    return f"\n{end_with_boxed(reasoning, answer)}"


COMPLETION_STYLES: dict[str, Callable[[str, str], Text]] = {
    "r1_zero": _tagged_completion,
    "nano": _tagged_completion,
    "boxed": _boxed_reply,
    "question": _boxed_text,
    "chat": _boxed_reply,
}


def end_with_boxed(reasoning: str, answer: str) -> str:
    r"""Return the reasoning with the answer in \boxed{} at its end, unless its last \boxed{} holds it already."""
    if last_boxed(reasoning) == answer:
        return reasoning
    return f"{reasoning}\nThe final answer is $\\boxed{{{answer}}}$."


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} (or \fbox{...}, or \boxed 5) of a text holds, stripped; None without one."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix(r"\boxed").removeprefix(r"\fbox").lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].split()[0].rstrip(".,") if rest.split("$")[0].strip() else None
    depth, position = 0, 0
    while position < len(rest):
        if rest[position] == "\\":
            position += 2  # \{ and \} are characters, not groups
            continue
        depth += {"{": 1, "}": -1}.get(rest[position], 0)
        position += 1
        if depth == 0:
            return rest[1 : position - 1].strip()
    return None
