"""Whether a completion declines to answer: a few English patterns at its beginning.

Floor 1. Pure text. Made to leave good rows alone: an apology by itself, a wish ("I can't wait"), a limit that is named
before an answer ("I can't give legal advice, but in general ...") and a long text are no refusals. A refusal that is
longer, or in other words, is missed.
"""

import re

LONGEST_REFUSAL = 800  # characters; a longer text that begins like a refusal mostly goes on to answer

CONTRACTIONS = {"\u2019": "'", "i'm ": "i am ", "can't": "cannot", "can not": "cannot", "won't": "will not"}

# What may stand before it: a sentence ("I see why you ask."), an interjection, an apology.
FIRST_SENTENCE = r"(?:[^.!?\n]{0,120}[.!?\n]\s+)?"
INTERJECTION = r"(?:(?:oh|no|well|hm+|unfortunately|however|but)\b[,.! ]+){0,3}"
SORRY = r"(?:(?:i am )?(?:(?:so|very|really|truly|deeply) )*(?:sorry|afraid)|i apologi[sz]e|(?:my )?apologies)\b"
APOLOGY = rf"(?:{SORRY}(?: that\b| for (?:the|any) [^.,;]{{1,40}})?[,.;! ]*(?:(?:but|however)\b[, ]*)?){{0,2}}"

AS_AN_AI = r"as an? [^.,]{0,30}(?:\bai\b|artificial intelligence|language model|assistant)\b[^.,]{0,40}, "
UNABLE = (
    r"i (?:really |simply |just )?(?:cannot|will not)(?: be able to)?",
    r"i am not (?:able|allowed|permitted|programmed|designed|going|willing|prepared) to",
    r"i am (?:unable|unwilling) to",
    r"i don't (?:think|feel|believe) (?:that )?i (?:can|should)",
)
ADVERBS = r"(?: (?:really|simply|just|directly|in good conscience))*"
ACTS = (
    r" (?:assist|comply|fulfill?|answer|respond|provide|generate|create|write|produce|share|offer|discuss|advise)\b",
    r" (?:engage|participate|support|condone|encourage|promote|facilitate)\b",
    r" help\b(?! but\b| \w+ing\b)",  # not "can't help but smile"
    r" (?:give|tell) (?:you (?:the|that|this|any|how to|where|what|who)|that|this|any|out|her|him|their|his)\b",
    r" do (?:that|this|so)\b(?=[.,;!]| for| because| as|$)",  # not "can't do this anymore"
)
UNSURE = r"(?! (?:(?:a|an|any|the|you|with|on) )*(?:definit|exact|specific|precise|complete|certain|informed))"
DECLINES = (
    r"i am not comfortable (?:with )?(?:help|assist|provid|shar|discuss|giv|answer|writ|recommend)",
    r"i (?:must|have to|need to|will have to) (?:respectfully |politely )?(?:decline|refuse)\b",
    rf"i (?:respectfully |politely )?(?:decline|refuse) to(?:{'|'.join(ACTS)})",
)
REFUSAL = re.compile(
    rf"\W*{FIRST_SENTENCE}{INTERJECTION}{APOLOGY}{INTERJECTION}"
    rf"(?:{AS_AN_AI}(?:{'|'.join(UNABLE)})"  # whatever it is
    rf"|(?:{'|'.join(UNABLE)}){ADVERBS}(?:{'|'.join(ACTS)}){UNSURE}|(?:{AS_AN_AI})?(?:{'|'.join(DECLINES)}))"
)
ANSWERS_ANYWAY = re.compile(
    r"[^.!?\n]*(?:[,;.!] (?:but|however|yet|that said),? (?:here|generally|in general|based on|as of)\b"
    r"|[,;] (?:but|however|yet),? (?:perhaps|maybe|there|some|the|it|you|if|i think"
    r"|i (?:can|could|will) (?:tell|give|offer|share|explain|suggest|provide|say|try|describe))\b)"
)


def is_refusal(completion: str) -> bool:
    """Return whether a completion declines, in its first or second sentence, what it was asked."""
    text = completion.strip().lower()
    if len(text) > LONGEST_REFUSAL:
        return False
    for contraction, words in CONTRACTIONS.items():
        text = text.replace(contraction, words)
    found = REFUSAL.match(text)
    return found is not None and not ANSWERS_ANYWAY.match(text, found.end())
