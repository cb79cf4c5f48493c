"""Refusals are told from answers that only look like them; both sides in the words that models use."""

import pytest

from posttrain.data.refusals import LONGEST_REFUSAL, is_refusal

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m sorry, I can\u2019t assist you with that request.",
    "I am sorry, but I cannot provide instructions for picking a lock.",
    "As an AI language model, I cannot form opinions, so I cannot answer this question.",
    "I apologize, but as an AI assistant, I am not able to share personal data.",
    "Sorry, I won't write that.",
    "I can't do that.",
    "I refuse to write this.",
    "I cannot in good conscience help you deceive your friend.",
    "My apologies, but I must decline.",
    "I must respectfully decline to write such a letter.",
    "I don't think I should help with that.",
    "I'm not comfortable discussing this.",
    "I'm afraid I won't be able to tell you how to do this.",
    "I understand that you are angry. However, I cannot encourage revenge.",
    "That is a hard question! Unfortunately, I'm unable to generate such images.",
    "I can't help with that, but I'd be happy to talk about something else.",
    "\"I'm sorry, but I can't discuss that topic.\"",
]
ANSWERS = [
    "I'm sorry to hear that. What happened then?",
    "I'm sorry for the confusion. The answer is 12.",
    "Sorry, it is 7: I had added wrongly.",
    "I can't wait to see you on Sunday!",
    "I can't help but smile when I read your letter.",
    "I can't help falling in love with you",
    "I cannot tell you how happy I am about this.",
    "I can't do this anymore, she said, and closed the door.",
    "I won't give up, for the road is long.",
    "I refuse to believe that summer is over.",
    "No, I can't. Penguins do not fly.",
    "I can't give legal advice, but in general a contract needs an offer and its acceptance.",
    "I can't provide an exact number, and a good estimate is 40,000.",
    "As an AI language model, I don't have feelings, but here is a poem about joy.",
    "As an AI, I was trained on text. I can write, translate and explain.",
    "As an AI language model, I cannot browse the web. However, based on what I know, it opened in 1998.",
    "As an AI, I can't taste anything, but I can describe it: sweet, with a little salt.",
    "You can't help everyone. Choose those who ask.",
    "The doctor cannot help him, so he leaves the town.",
    "No, a penguin cannot fly. It swims instead.",
    "Unfortunately, the train was late, and they missed the boat.",
    "Dear Ms Hill, I am sorry that I cannot come on Friday. Could we meet on Monday?",
    "She declined the offer because the salary was too low.",
    "To refuse politely, say: I'm sorry, but I can't help with that.",
    "def help():\n    return 'I cannot help'",
    "42",
    "",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(f"\n {text.upper()}\n")


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_none(text: str) -> None:
    assert not is_refusal(text)


def test_a_long_text_that_begins_like_a_refusal_goes_on_to_answer() -> None:
    opening = "I can't answer this for every country. "
    assert is_refusal(opening)
    assert not is_refusal(opening + "In France the law says so. " * (LONGEST_REFUSAL // 20))


def test_a_refusal_stands_at_the_beginning() -> None:
    assert not is_refusal("First boil the water. Then add the rice. I can't help with that.")
