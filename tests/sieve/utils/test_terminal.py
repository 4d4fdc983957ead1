"""Names reach a terminal as they are: no markup, no emoji codes, no control characters."""

import io

import pytest
from rich.table import Table

from sieve.utils import progress
from sieve.utils.terminal import console, printable

NASTY = ["[/bold]", "[red]x[/red]", "[link=http://x]y", ":smile:", "a\\[b]", "[", "]]"]
STEERING = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\nb", "a\rb", "\u202egpj.exe", "\udcff", "\u2028", "\x00"]


def printed(*values, width=200) -> str:
    terminal = console()
    terminal.file, terminal.width = io.StringIO(), width
    for value in values:
        terminal.print(value)
    return terminal.file.getvalue()


@pytest.mark.parametrize("text", NASTY)
def test_markup_is_text(text):
    table = Table("column", title=f"title {text}")
    table.add_row(text)
    assert printed(text) == f"{text}\n"
    assert printed(table).count(text) == 2


@pytest.mark.parametrize("text", STEERING)
def test_control_characters_are_escaped(text):
    table = Table("column", title=text)
    table.add_row(text)
    shown = printed(text, table)
    assert shown.count(printable(text)) == 3
    assert not any(char in shown for char in text if not char.isprintable() and char != "\n")
    assert printable(text).isascii() or "gpj" in text
    assert printable(text).isprintable()


def test_ordinary_text_is_left_alone():
    for text in ("é 漢字 Ω — 👩‍🔬 x", "C:\\models\\a", ""):
        assert printable(text) == text


@pytest.mark.parametrize("text", NASTY + STEERING)
def test_progress_prints_text_as_it_is(text, capsys):
    with progress.shown():
        progress.say(f"say {text}")
        progress.note(f"note {text}")
        with progress.bar(f"bar {text}", 3, "things") as advance:
            advance(3)
    shown = capsys.readouterr().err
    for kind in ("say", "note", "bar"):
        assert f"{kind} {printable(text)}" in shown


def test_bars_on_a_terminal(monkeypatch):
    """A name in the bar itself, and a bar within another."""
    terminal = console()
    monkeypatch.setattr(progress, "console", lambda: terminal)
    terminal.file, terminal._force_terminal, terminal.width = io.StringIO(), True, 120
    with progress.shown(), progress.bar("outer [/bold]\x1b[2J", 2, "[/x]") as advance:
        advance(1)
        with progress.bar("inner", 1, "things") as advance:
            advance(1)
    shown = terminal.file.getvalue()
    assert "outer [/bold]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "inner: 1 things" in shown


def test_progress_is_shown_on_a_terminal_and_nowhere_else(monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr", Stream())
        assert progress.is_shown() is terminal
        with progress.shown(not terminal):
            assert progress.is_shown() is not terminal
        assert progress.is_shown() is terminal
    monkeypatch.setattr("sys.stderr", None)
    assert not progress.is_shown()
