"""Words of an answer and of a reference, by which the two are compared.

A text is spelled in one way (Unicode NFC, straight quotes, ASCII for full-width characters) and cut into
tokens: words, and the sentence punctuation at their edges. Signs within or before a word belong to it, since they carry
meaning: "-5", "3.5", "C++", "x > 3". `squad` then drops punctuation, articles and upper case, unless nothing would be
left; `numeric` also writes numbers by their value; `none` keeps every token.
"""

import re
import unicodedata
from fractions import Fraction

MODES = ("none", "squad", "numeric")
ARTICLES = ("a", "an", "the")

_SPELLING = (
    {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width ASCII
    | dict.fromkeys(map(ord, "“”„‟«»「」『』《》"), '"')
    | dict.fromkeys(map(ord, "‘’‚‛‹›ʼ"), "'")
    | dict.fromkeys(map(ord, "‐‑‒–−"), "-")
    | dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"), "")  # characters without width
    | {ord("—"): " — ", ord("…"): "...", ord("。"): ".", ord("、"): ",", ord("،"): ",", ord("؟"): "?", ord("؛"): ";"}
)
_HAN_OR_KANA = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
# Signs that are words of their own, whether or not the writer puts spaces around them.
_SPACING = [
    (re.compile(r"(?<=[^\W\d_])([,;])(?=[^\W\d_])"), r"\1 "),
    (re.compile(r"\s*(<=|>=|!=|==|[=<>≤≥≠])\s*"), r" \1 "),
    (re.compile(r"(?<=\d)([%‰€£¥$])(?!\w)"), r" \1"),
    (re.compile(r"(?<![-+\w])([€£¥$])(?=\.?\d)"), r"\1 "),
]
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|\*|`)(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL)
_BULLET = re.compile(r"^\s*[-*•]\s+(?=[^\W\d_]{2})")
_INITIALS = re.compile(r"(?:[^\W\d_]\.){2,}")
_NUMBER = re.compile(
    r"[+-]?(?:\d{1,60}(?:\.\d{0,60})?|\.\d{1,60})(?:[eE][+-]?\d{1,2})?|[+-]?\d{1,60}/\d{1,60}", re.ASCII
)
_OPENING, _CLOSING = "\"'(¿¡", "\"').,;:!?"
_SENTENCE = frozenset(_OPENING + _CLOSING + "—")


def words(text: str, mode: str, articles: bool = False) -> list[str]:
    """Tokens of a text, as many as `mode` keeps; at least one unless the text is white space.

    articles: keep "a", "an" and "the".
    """
    if mode == "none":
        return tokens(text)
    plain = _INITIALS.sub(lambda found: found[0].replace(".", ""), _EMPHASIS.sub(r"\2", _BULLET.sub("", spelled(text))))
    every = tokens(_THOUSANDS.sub(lambda found: found[0].replace(",", ""), plain))
    kept = every if articles else _without_articles(every)
    kept = [token for token in kept if not _SENTENCE.issuperset(token)] or every
    kept = [unicodedata.normalize("NFC", token.lower()) for token in kept] or tokens(text)
    return [_value(token) for token in kept] if mode == "numeric" else kept


def spelled(text: str) -> str:
    """The text in NFC, with one spelling for characters that differ only in how they look."""
    return unicodedata.normalize("NFC", text).translate(_SPELLING)


def tokens(text: str) -> list[str]:
    """Words, and the sentence punctuation before and behind them."""
    # Han and Kana are written without spaces: each character counts as a word.
    text = _HAN_OR_KANA.sub(r" \1 ", spelled(text))
    for pattern, spaced in _SPACING:
        text = pattern.sub(spaced, text)
    odd = {quote for quote in "\"'" if text.count(quote) % 2}
    return [token for chunk in text.split() for token in _peeled(chunk, odd)]


def _peeled(chunk: str, odd: set[str]) -> list[str]:
    """The chunk and the punctuation at its edges. `odd`: quotes without a partner, which may be feet or inches."""
    before, behind = [], []
    while chunk and not _SENTENCE.issuperset(chunk):
        if chunk.startswith("..."):
            before.append("...")
            chunk = chunk[3:]
        elif chunk[0] in _OPENING and not (chunk[0] == "(" and not _encloses(chunk)):
            before.append(chunk[0])
            chunk = chunk[1:]
        elif chunk[-1] in _CLOSING and not _means_something(chunk, odd):
            behind.append(chunk[-1])
            chunk = chunk[:-1]
        else:
            break
    return [*before, *([chunk] if chunk else []), *reversed(behind)]


def _encloses(chunk: str) -> bool:
    """Whether the bracket that opens the chunk is punctuation: it ends behind the chunk, or with it."""
    depth = 0
    for place, character in enumerate(chunk):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return not chunk[place + 1 :].strip(_CLOSING)
    return True


def _means_something(chunk: str, odd: set[str]) -> bool:
    """Whether the sign at the end belongs to the word: "f(x)", "5!", "6'"."""
    last, word = chunk[-1], chunk[:-1]
    if last == ")":
        return chunk.count("(") >= chunk.count(")")
    if last == "!":
        return word[-1].isdigit() or word[-1] == ")" or (len(word) == 1 and word.isalpha())
    return last in odd and word[-1].isdigit()


def _without_articles(every: list[str]) -> list[str]:
    """Drop articles: words before another one. "Plan A", "A." and "A, B" end in a letter, not in an article."""
    shouted = not any(token.islower() for token in every)
    kept = []
    for place, token in enumerate(every):
        following = every[place + 1] if place + 1 < len(every) else ""
        article = token.lower() in ARTICLES and following[:1].isalnum()
        # An "a" before anything but a word is a letter that names something.
        if article and token.lower() == "a":
            article = following[0].isalpha() and len(following) > 1 and (token == "a" or place == 0 or shouted)
        if not article:
            kept.append(token)
    return kept


def _value(token: str) -> str:
    """A number as a reduced fraction, other tokens as they are."""
    if not _NUMBER.fullmatch(token):
        return token
    try:
        return str(Fraction(token))
    except ZeroDivisionError:
        return token
