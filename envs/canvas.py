"""Pictures made with numpy alone: boxes, discs, lines and a small font of capitals."""

import textwrap
from typing import Any

import numpy as np

COLOURS = {
    "white": (255, 255, 255),
    "light": (222, 226, 233),
    "grey": (140, 146, 158),
    "black": (33, 37, 43),
    "blue": (58, 110, 190),
    "red": (210, 66, 58),
    "green": (66, 150, 84),
    "orange": (232, 136, 48),
    "yellow": (238, 203, 72),
    "purple": (128, 84, 170),
    "teal": (64, 170, 176),
    "brown": (130, 88, 60),
    "pink": (232, 140, 176),
}
# Three columns by five rows, each point two pixels wide and high; a row an octal digit, top row first.
_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:-+/()%^"
_ROWS = (
    "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 25755 65656 34443 65556 74647 74644 "
    "34553 55755 72227 11152 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 "
    "55775 55255 55222 71247 00002 00024 02020 00700 02720 11244 12221 42224 51245 25000"
)
# Those that so few points cannot tell apart, pixel by pixel: seven columns by ten rows, a row two
# hexadecimal digits.
_FINE = {
    "D": "7C7E6763636363677E7C",
    "M": "6363777F7F6B6B636363",
    "N": "636373737B6F67676363",
    "O": "1C3E7763636363773E1C",
    "Q": "1C3E7763636B6F763F1B",
    "W": "6363636B6B7F7F776363",
}


def _bitmap(rows: list[int], columns: int) -> np.ndarray:
    """``(len(rows), columns)`` bool: the bits of each row, the most significant on the left."""
    return np.array(rows)[:, None] >> np.arange(columns)[::-1] & 1 > 0


GLYPHS = {
    character: _bitmap([int(digit, 8) for digit in rows], 3).repeat(2, axis=0).repeat(2, axis=1)
    for character, rows in zip(_CHARACTERS, _ROWS.split(), strict=True)
}
GLYPHS |= {character: _bitmap(list(bytes.fromhex(rows)), 7) for character, rows in _FINE.items()}
LINES = 5  # of text


class Canvas:
    """A white square with text below it.

    Args:
        lines: text under the drawing, in capitals; long lines are wrapped. There is always room for five,
            so that all frames of an environment have one shape: what is more is cut, and "..." says so.
        size: width of the picture and height of the drawing, in pixels.
    """

    def __init__(self, lines: list[str], size: int = 400) -> None:
        self.size, self.margin = size, 16
        self.pixels = np.full((size + 112, size, 3), 255, dtype=np.uint8)
        columns = (size - self.margin) // 8
        wrapped = [part for line in lines for part in textwrap.wrap(line, columns)]
        if len(wrapped) > LINES:
            wrapped[LINES - 1 :] = [wrapped[LINES - 1][: columns - 3] + "..."]
        for i, line in enumerate(wrapped):
            self._text(line.upper(), self.margin, size + 6 + 20 * i)

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        """Column and row of a point of the unit square."""
        inner = self.size - 2 * self.margin
        return self.margin + x * inner, self.size - self.margin - y * inner

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        """Fill the rectangle from (x0, y0) to (x1, y1)."""
        (left, bottom), (right, top) = self._pixel(x0, y0), self._pixel(x1, y1)
        self.pixels[round(top) : round(bottom), round(left) : round(right)] = COLOURS[colour]

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        """Fill a circle."""
        column, row = self._pixel(x, y)
        rows, columns = np.ogrid[: self.size, : self.size]
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= (radius * (self.size - 2 * self.margin)) ** 2
        self.pixels[: self.size][inside] = COLOURS[colour]

    def bars(
        self, shares: Any, x0: float, y0: float, x1: float, y1: float, colour: str, zero: float = 0.0
    ) -> None:
        """Fill the rectangle from (x0, y0) to (x1, y1) with bars, from the share ``zero`` of its height to
        ``shares``, numbers in [0, 1]."""
        width = (x1 - x0) / max(1, len(shares))
        self.box(x0, y0, x1, y1, "light")
        for i, share in enumerate(shares):
            low, high = sorted((zero, min(max(float(share), 0.0), 1.0)))
            bottom, top = y0 + low * (y1 - y0), y0 + high * (y1 - y0)
            self.box(x0 + (i + 0.1) * width, bottom, x0 + (i + 0.9) * width, top, colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: int = 2) -> None:
        """Draw a segment."""
        along = np.linspace(0, 1, 2 * self.size)
        columns, rows = self._pixel(x0 + (x1 - x0) * along, y0 + (y1 - y0) * along)  # type: ignore[arg-type]
        for dx in range(width):
            for dy in range(width):
                r = np.clip(np.rint(rows).astype(int) + dy - width // 2, 0, self.size - 1)
                c = np.clip(np.rint(columns).astype(int) + dx - width // 2, 0, self.size - 1)
                self.pixels[r, c] = COLOURS[colour]

    def _text(self, text: str, left: int, top: int) -> None:
        for i, character in enumerate(text):
            if character in GLYPHS:
                glyph, x = GLYPHS[character], left + 8 * i
                self.pixels[top : top + len(glyph), x : x + glyph.shape[1]][glyph] = COLOURS["black"]
