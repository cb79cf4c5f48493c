"""What is invisible in a text is named, and what a script or an emoji needs stays."""

import pytest

from posttrain.reports.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred\x00", "⟨U+001B⟩[31mred⟨U+0000⟩"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"),
        ("pass\u200dword", "pass⟨U+200D⟩word"),
        ("end\u200d", "end⟨U+200D⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("line\u2028feed\r", "line⟨U+2028⟩feed⟨U+000D⟩"),
        ("👩\u200d🔬 नमस्ते 模型 π ≤ √2", "👩\u200d🔬 नमस्ते 模型 π ≤ √2"),
    ],
)
def test_invisible_characters_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(text).encode()
