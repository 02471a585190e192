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
# Three columns by five rows, a row an octal digit, top row first.
_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,:-+/()%^"
_ROWS = (
    "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 25755 65656 34443 65556 74647 74644 "
    "34553 55755 72227 11152 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 "
    "55775 55255 55222 71247 00002 00024 02020 00700 02720 11244 12221 42224 51245 25000"
)
GLYPHS = dict(zip(_CHARACTERS, _ROWS.split(), strict=True))


class Canvas:
    """A white square with text below it.

    Args:
        lines: text under the drawing, in capitals; long lines are wrapped, and there is room for five,
            always, so that all frames of an environment have one shape.
        size: width of the picture and height of the drawing, in pixels.
    """

    def __init__(self, lines: list[str], size: int = 400) -> None:
        self.size, self.margin = size, 16
        self.pixels = np.full((size + 112, size, 3), 255, dtype=np.uint8)
        wrapped = [part for line in lines for part in textwrap.wrap(line, (size - self.margin) // 8)]
        for i, line in enumerate(wrapped[:5]):
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

    def bars(self, shares: Any, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        """Fill the rectangle from (x0, y0) to (x1, y1) with bars of ``shares``, numbers in [0, 1], of its
        height."""
        width = (x1 - x0) / max(1, len(shares))
        self.box(x0, y0, x1, y1, "light")
        for i, share in enumerate(shares):
            height = min(max(float(share), 0.0), 1.0) * (y1 - y0)
            self.box(x0 + (i + 0.1) * width, y0, x0 + (i + 0.9) * width, y0 + height, colour)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: int = 2) -> None:
        """Draw a segment."""
        along = np.linspace(0, 1, 2 * self.size)
        columns, rows = self._pixel(x0 + (x1 - x0) * along, y0 + (y1 - y0) * along)  # type: ignore[arg-type]
        for dx in range(width):
            for dy in range(width):
                r = np.clip(np.rint(rows).astype(int) + dy - width // 2, 0, self.size - 1)
                c = np.clip(np.rint(columns).astype(int) + dx - width // 2, 0, self.size - 1)
                self.pixels[r, c] = COLOURS[colour]

    def _text(self, text: str, left: int, top: int, scale: int = 2) -> None:
        for i, character in enumerate(text):
            for j, digit in enumerate(GLYPHS.get(character, "00000")):
                row = np.array([int(bit) for bit in f"{int(digit):03b}"], dtype=bool).repeat(scale)
                x, y = left + 4 * scale * i, top + scale * j
                self.pixels[y : y + scale, x : x + 3 * scale][:, row] = COLOURS["black"]
