"""Images as local models take them: decoded, upright, in RGB, and kept while they are in use.

The bytes may be hostile: only the four kinds that tasks may have are tried, and no pixel is decoded before the size is
known.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from actors.models.images import CACHE_BYTES, KeptImages

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 2**26  # 8192 x 8192: 200 MB once decoded, and below what Pillow warns of
KINDS = ("PNG", "JPEG", "GIF", "WEBP")


class Pictures(KeptImages["Image"]):
    """Decoded images."""

    def __init__(self, *, max_bytes: int = CACHE_BYTES) -> None:
        super().__init__(decode, lambda picture: 3 * picture.width * picture.height, max_bytes=max_bytes)


def decode(data: bytes) -> Image:
    """The first frame, turned as its camera says, on white where it is transparent.

    Raises: ValueError: it is larger than ``MAX_PIXELS``, or cannot be decoded; the text ends a sentence about it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as image:
            width_px, height_px = image.size
            picture = _in_rgb(image) if width_px * height_px <= MAX_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise ValueError(f"cannot be decoded: {str(err).partition(chr(10))[0]}") from err
    if picture is None:
        raise ValueError(f"measures {width_px} x {height_px} pixels, more than the {MAX_PIXELS} that are decoded")
    return picture


def _in_rgb(image: Image) -> Image:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    seen = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def unmarked(text: str, marker: str | None) -> str:
    """A text in which nothing is taken for a picture. ``marker``: what stands for one in a model's prompts.

    Published instructions say "<image>" where theirs was, and a model may have been told to say so.
    """
    return text.replace(marker, "[image]") if marker else text
