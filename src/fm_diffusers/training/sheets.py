"""Contact sheets: pictures in rows under titles, with gaps, large enough to be seen."""

import textwrap
from collections.abc import Mapping, Sequence
from string import ascii_lowercase

from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont

#: Between pictures, in pixels.
GAP = 4

#: What the shorter side of a picture has at least, in pixels.
LEGIBLE = 56

#: Heights of the letters of titles and of names, in pixels.
TITLE, NAME = 15, 10


def lettering(texts: Sequence[str], width: int, size: int) -> Image.Image:
    """Return texts side by side on a white strip, each in as many lines as its share takes."""
    font, share = ImageFont.load_default(size), width / len(texts)
    letters = max(1, int(share * len(ascii_lowercase) / font.getlength(ascii_lowercase)))
    wrapped = [textwrap.fill(text, letters) for text in texts]
    lines = 1 + max(text.count("\n") for text in wrapped)
    strip = Image.new("RGB", (width, lines * (size + GAP) + GAP), "white")
    for i, text in enumerate(wrapped):
        ImageDraw.Draw(strip).multiline_text(
            ((i + 0.5) * share, strip.height - GAP),
            text,
            fill="black",
            font=font,
            anchor="md",
            align="center",
        )
    return strip


def framed(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture on white with a gap at its right and below, larger by a whole number."""
    factor = -(-side // min(picture.size))
    size = factor * picture.width, factor * picture.height
    larger = picture.convert("RGBA").resize(size, Image.Resampling.NEAREST)
    cell = Image.new("RGBA", (larger.width + GAP, larger.height + GAP), "white")
    cell.alpha_composite(larger)
    return cell.convert("RGB")


def stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Return strips of one width below each other, with a gap at the left and at the top."""
    size = strips[0].width + GAP, sum(strip.height for strip in strips) + GAP
    sheet, top = Image.new("RGB", size, "white"), GAP
    for strip in strips:
        sheet.paste(strip, (GAP, top))
        top += strip.height
    return sheet


def contact_sheet(
    parts: Mapping[str, Sequence[Image.Image]], names: Sequence[str], side: int = LEGIBLE
) -> Image.Image:
    """Return pictures in rows, with a title above each part and names above the columns.

    Args:
        parts: pictures of one size by the title of their rows, row by row. A title of "" is none.
        names: of the columns, as many as there are columns; "" for one without a name.
        side: what the shorter side of a picture is to have at least, in pixels. A picture is
            enlarged by a whole number, so that each of its pixels is a square, and never reduced.

    Raises:
        ValueError: for pictures that are not whole rows.

    Example:
        >>> squares = [Image.new("L", (8, 8), 80 * i) for i in range(4)]
        >>> contact_sheet({"ODE, 20 steps": squares}, ["zero", "one"]).size
        (124, 165)
    """
    strips: list[Image.Image] = []
    for i, (title, pictures) in enumerate(parts.items()):
        if not pictures or len(pictures) % len(names):
            raise ValueError(
                f"{title!r} has {len(pictures)} pictures, which are not whole rows of "
                f"{len(names)}: give a name, or an empty one, for each column"
            )
        cells = [framed(picture, side) for picture in pictures]
        grid = make_image_grid(cells, len(cells) // len(names), len(names))
        if title:
            strips.append(lettering([title], grid.width, TITLE))
        if i == 0 and any(names):
            strips.append(lettering(names, grid.width, NAME))
        strips.append(grid)
    return stacked(strips)
