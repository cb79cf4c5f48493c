"""How numbers are written, texts shortened and labels kept apart."""

import math

import pytest

from posttrain.reports.figures.labels import duration, fit, number, percent, percent_tick, spread, text_width, wrap


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (-3.0, "\N{MINUS SIGN}3"),
        (999.0, "999"),
        (999.9, "1k"),
        (1234.0, "1.23k"),
        (2.5e6, "2.5M"),
        (7e9, "7G"),
        (1e-5, "1e\N{MINUS SIGN}05"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_numbers_have_three_digits(value: float, written: str) -> None:
    assert number(value) == written


def test_shares_are_percentages() -> None:
    assert (percent(0.1234), percent(1.0, 0), percent(math.nan)) == ("12.3%", "100%", "-")
    assert (percent_tick(0.25), percent_tick(0.125), percent_tick(1)) == ("25%", "12.5%", "100%")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.25, "0.25 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (61, "1 min"),
        (3599, "1 h"),
        (3600, "1 h"),
        (4320, "1 h 12 min"),
        (90000, "25 h"),
        (math.nan, "-"),
    ],
)
def test_durations_have_their_largest_units(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_a_text_that_does_not_fit_keeps_both_its_ends() -> None:
    name = "smollm2-135m-instruct-grpo-beta0.04-seed-17"
    short = fit(name, 120, 11)
    start, end = short.split("…")
    assert name.startswith(start)
    assert name.endswith(end)
    assert text_width(short, 11) <= 120 < text_width(name, 11)
    assert fit("base", 120, 11) == "base"
    assert fit("two\nlines", 120, 11) == "two lines"
    assert fit(name, 1, 11) == "…"


def test_wrapped_lines_hold_every_word_within_the_width() -> None:
    text = "Accuracy on problems of grade school mathematics with an extraordinarilylongwordthatmustbeshortened"
    lines = wrap(text, 150, 11)
    assert all(text_width(line, 11) <= 150 for line in lines)
    assert " ".join(lines).startswith("Accuracy on problems of grade school mathematics with an extra")
    assert wrap("", 150, 11) == []


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([20.0, 50.0], [20.0, 50.0]),  # far apart: left alone
        ([50.0, 50.0], [45.0, 55.0]),  # a block around what they want
        ([52.0, 50.0, 51.0], [61.0, 41.0, 51.0]),  # their order is kept
        ([0.0, 1.0], [0.0, 10.0]),  # pushed up from the lower end
        ([100.0, 99.0, 98.0], [100.0, 90.0, 80.0]),
    ],
)
def test_labels_are_spread_in_their_order(wanted: list[float], expected: list[float]) -> None:
    assert spread(wanted, 10, 0, 100) == pytest.approx(expected)
