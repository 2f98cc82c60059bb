"""Fitting others' texts into a prompt: long ones are cut in the middle, so that how they begin and end is kept.

Lengths are estimates: protocols know no tokenizer, and a replay must come to the same cut whatever model speaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocols.message import ImagePart, Message

MARK = " [...] "  # stands where something was left out
_MIN_TOKENS = 8  # of a text that is shown at all
_LEAST_IMAGE, _MOST_IMAGE = 576, 4096  # tokens: the fixed count of LLaVA-1.5; where tiled or native sizes mostly end
_PIXELS_PER_TOKEN = 28 * 28  # of models that see an image at its own size, such as Qwen2-VL


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, rather too many than too few: one for every three bytes of UTF-8.

    English runs at four bytes a token and Chinese at three (one character) with the usual vocabularies.
    """
    return (len(text) if text.isascii() else len(text.encode("utf-8", "replace"))) // 3 + 1


def estimate_messages(messages: Iterable[Message]) -> int:
    """The same for whole messages, their images included."""
    return sum(
        estimate_tokens(message.text) + sum(estimate_image(image) for image in message.images) for message in messages
    )


def estimate_image(image: ImagePart) -> int:
    """About how many tokens an image is: by its size, where that is known."""
    return min(max(image.width_px * image.height_px // _PIXELS_PER_TOKEN, _LEAST_IMAGE), _MOST_IMAGE)


def fit_blocks(blocks: Sequence[str], room: int) -> list[str]:
    """The texts, the longest cut first until all together fit.

    Args:
        room: estimated tokens for all of them; every text keeps at least a few, even where that is too much.
    Returns: as many texts, in the same order.
    """
    sizes = [estimate_tokens(block) for block in blocks]
    if sum(sizes) <= room:
        return list(blocks)
    cap = _MIN_TOKENS
    left, count = room, len(sizes)
    for size in sorted(sizes):  # all get the same cap; what short ones leave over goes to the long
        cap = max(_MIN_TOKENS, left // count)
        if size > cap:
            break
        left, count = left - size, count - 1
    return [block if size <= cap else cut_middle(block, cap) for block, size in zip(blocks, sizes, strict=True)]


def cut_middle(text: str, tokens: int) -> str:
    """Beginning and end of a text, with a mark between them, at most about so many estimated tokens."""
    share = max(0.0, (tokens - estimate_tokens(MARK)) / estimate_tokens(text))
    half = int(len(text) * share / 2)
    return text[:half].rstrip() + MARK + text[len(text) - half :].lstrip()
