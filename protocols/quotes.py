"""Which quotes of an argument stand in the source: for readers who cannot look it up.

A debater marks a quote as ``<quote>..</quote>``. What readers are shown instead is ``<v_quote>`` where the source holds
those words in that order, and ``<u_quote>`` where it does not. A mark that the debater sets itself is taken off first.
"""

from __future__ import annotations

import re
import unicodedata

# Whatever a reader might take for such a tag, however it is spaced or spelled: none may survive that we did not write.
_TAG = re.compile(r"<\s{0,8}(/?)\s{0,8}(?:[vu][\s_-]{0,3})?quotes?\s{0,8}>", re.IGNORECASE)
_ODD = re.compile(r"[^\w\s]|_")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # written without spaces
_APOSTROPHES = frozenset("'`\u2018\u2019\u02bc\u2032")
_DASHES = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212")


def verify_quotes(argument: str, words: str) -> str:
    """The argument with each quote marked as verified or not.

    A quote is verified where its words stand one behind the other in ``words`` (what ``words_of`` makes of the source),
    whatever its punctuation, spacing, letter case and width: models mend a comma or a dash as they copy. A sign, a
    decimal point and a symbol such as % count.
    Tags that pair with none are left out. Takes time in proportion to the texts, whatever they hold.
    """
    shown: list[str] = []
    opened: int | None = None  # where the latest quote that is still open starts
    end = 0
    for tag in _TAG.finditer(argument):
        text, end = argument[end : tag.start()], tag.end()
        if tag[1] and opened is not None:
            kind = "v_quote" if holds(words, text) else "u_quote"
            shown.append(f"<{kind}>{text}</{kind}>")
        else:
            shown.append(text)
        opened = None if tag[1] else tag.start()
    return "".join((*shown, argument[end:]))


def holds(words: str, quote: str) -> bool:
    """Whether ``words`` of a source hold those of a quote, one behind the other; a quote without words is not held."""
    quoted = words_of(quote)
    return bool(quoted) and f" {quoted} " in f" {words} "


def words_of(text: str) -> str:
    """The words alone, one space between them: what remains the same when only the typography differs."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_IDEOGRAPH.sub(r" \g<0> ", _ODD.sub(_bare, text)).split())


def _bare(odd: re.Match[str]) -> str:
    """What a character that is neither letter, digit nor space leaves."""
    sign, text = odd.group(), odd.string
    before, after = text[odd.start() - 1 : odd.start()], text[odd.end() : odd.end() + 1]
    if sign in _APOSTROPHES:
        return ""
    if sign in _DASHES:
        return "-" if after.isdigit() and not before.isalnum() else " "
    if sign in ".," and before.isdigit() and after.isdigit():
        return sign
    if sign == "%" or unicodedata.category(sign)[0] in "SM":  # a symbol or an accent: part of what is said
        return sign
    return "" if unicodedata.category(sign) == "Cf" else " "  # zero-width characters and soft hyphens leave no gap
