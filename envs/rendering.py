"""Text and pictures of the grid, with NumPy alone.

Every shape is a signed distance function (negative inside) on the unit square of one cell, x to the right
and y downwards. A shape becomes pixels by asking a fine grid of points inside each pixel whether they lie
inside: their share is the pixel's coverage, and that is all the antialiasing there is.
"""

from functools import lru_cache

import numpy as np

PICTURE_PIXELS = 768  # the longer side of the board, roughly
CELL_PIXELS = (8, 64)  # a cell is never smaller or larger than this
POINTS_PER_PIXEL = 4  # along each axis

# Blue, vermilion and bluish green of Okabe and Ito stay apart for colour-blind eyes; shapes differ as well.
BLUE, VERMILION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)
WHITE, INK = (255, 255, 255), (28, 42, 58)
PAGE, LIGHT, DARK = (203, 210, 218), (246, 248, 250), (236, 240, 244)  # behind the cells; two free cells
SKY = (207, 228, 243)  # the start


def text(desc: tuple[str, ...], row: int, column: int) -> str:
    """Return the map as text, one line per row, the agent's cell in brackets."""
    lines = []
    for i, cells in enumerate(desc):
        marked = [f"[{cell}]" if (i, j) == (row, column) else f" {cell} " for j, cell in enumerate(cells)]
        lines.append("".join(marked))
    return "\n".join(lines) + "\n"


def draw_board(desc: tuple[str, ...]) -> np.ndarray:
    """Return the map without the agent, uint8 `[height, width, 3]`."""
    size, margin = _layout(desc)
    rows, columns = len(desc), len(desc[0])
    board = np.empty((rows * size + 2 * margin, columns * size + 2 * margin, 3), dtype=np.uint8)
    board[:] = PAGE
    for i, cells in enumerate(desc):
        for j, cell in enumerate(cells):
            free = LIGHT if (i + j) % 2 == 0 else DARK
            board[cell_window(desc, i, j)] = _tile(cell, free, size)
    return board


def draw_agent(board: np.ndarray, desc: tuple[str, ...], row: int, column: int) -> np.ndarray:
    """Return a copy of the `board` of `desc`, with the agent on the given cell."""
    picture = board.copy()
    window = picture[cell_window(desc, row, column)]
    size, _ = _layout(desc)
    window[:] = _blend(window, _agent_layers(desc[row][column], size))
    return picture


def _layout(desc: tuple[str, ...]) -> tuple[int, int]:
    """Return the side of a cell and the margin around the board, in pixels, both even for video codecs."""
    smallest, largest = CELL_PIXELS
    size = min(max(PICTURE_PIXELS // max(len(desc), len(desc[0])), smallest), largest) // 2 * 2
    return size, max(size // 8, 1) * 2


def cell_window(desc: tuple[str, ...], row: int, column: int) -> tuple[slice, slice]:
    """Return where in the picture of `desc` a cell lies: a slice of its rows and one of its columns."""
    size, margin = _layout(desc)
    top, left = margin + row * size, margin + column * size
    return slice(top, top + size), slice(left, left + size)


@lru_cache(maxsize=64)
def _tile(cell: str, free: tuple[int, int, int], size: int) -> np.ndarray:
    """Return the picture of one cell, uint8 `[size, size, 3]`."""
    x, y = _points(size)
    ground = {"H": VERMILION, "G": GREEN, "S": SKY}.get(cell, free)
    layers = [(ground, _coverage(_box(x, y, half=0.47, radius=0.10)), 1.0)]
    if cell == "H":  # a warning sign
        sign = _polygon(x, y, [(0.5, 0.25), (0.76, 0.71), (0.24, 0.71)]) - 0.07
        bar = _polygon(x, y, [(0.465, 0.38), (0.535, 0.38), (0.515, 0.56), (0.485, 0.56)]) - 0.015
        layers += [(WHITE, _coverage(sign), 1.0)]
        layers += [(VERMILION, _coverage(np.minimum(bar, _disc(x, y, 0.5, 0.665, 0.048))), 1.0)]
    if cell == "G":  # a star
        turns = np.arange(10) / 10 * 2 * np.pi
        reach = np.where(np.arange(10) % 2 == 0, 0.32, 0.145)
        corners = np.stack([0.5 + reach * np.sin(turns), 0.52 - reach * np.cos(turns)], axis=-1)
        layers += [(WHITE, _coverage(_polygon(x, y, corners) - 0.025), 1.0)]
    if cell == "S":  # a ring
        layers += [(BLUE, _coverage(abs(_disc(x, y, 0.5, 0.5, 0.27)) - 0.035), 1.0)]
    page = np.full((size, size, 3), PAGE, dtype=np.uint8)
    return _blend(page, layers)


@lru_cache(maxsize=64)
def _agent_layers(cell: str, size: int) -> list[tuple]:
    """Return the layers of the agent: a round face, at ease anywhere but on a hazard."""
    x, y = _points(size)
    body = _disc(x, y, 0.5, 0.5, 0.34)
    layers = [
        (INK, _coverage(_disc(x, y, 0.5, 0.55, 0.39)), 0.22),  # its shadow
        (WHITE, _coverage(body - 0.05), 1.0),
        (BLUE if cell != "H" else INK, _coverage(body), 1.0),
    ]
    side = abs(x - 0.5)  # the face is symmetric
    if cell == "H":
        stroke, counterstroke = ((0.07, 0.36), (0.19, 0.48)), ((0.19, 0.36), (0.07, 0.48))
        crosses = np.minimum(_segment(side, y, *stroke), _segment(side, y, *counterstroke))
        mouth = np.maximum(abs(_disc(x, y, 0.5, 0.76, 0.13)), y - 0.69)
        return layers + [(WHITE, _coverage(np.minimum(crosses, mouth) - 0.025), 1.0)]
    mouth = np.maximum(abs(_disc(x, y, 0.5, 0.53, 0.17)), 0.60 - y) - 0.025
    eyes = _disc(side, y, 0.13, 0.44, 0.085)
    return layers + [
        (WHITE, _coverage(np.minimum(eyes, mouth)), 1.0),
        (INK, _coverage(_disc(side, y, 0.12, 0.45, 0.045)), 1.0),
    ]


def _blend(picture: np.ndarray, layers: list[tuple]) -> np.ndarray:
    """Return the picture with each layer `(colour, coverage [size, size], opacity)` laid over it in turn."""
    result = picture.astype(np.float32)
    for colour, coverage, opacity in layers:
        weight = opacity * coverage[..., None]
        result = (1.0 - weight) * result + weight * np.array(colour, dtype=np.float32)
    return np.rint(result).astype(np.uint8)


def _points(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the sample points of a cell, each `[size * POINTS_PER_PIXEL] * 2`."""
    count = size * POINTS_PER_PIXEL
    middle = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(middle, middle)
    return x, y


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Return the share of each pixel's points that lie inside the shape, float32 `[size, size]`."""
    size = len(distance) // POINTS_PER_PIXEL
    inside = (distance < 0.0).reshape(size, POINTS_PER_PIXEL, size, POINTS_PER_PIXEL)
    return inside.mean(axis=(1, 3), dtype=np.float32)


def _disc(x, y, centre_x: float, centre_y: float, radius: float) -> np.ndarray:
    return np.hypot(x - centre_x, y - centre_y) - radius


def _box(x, y, half: float, radius: float) -> np.ndarray:
    """A square about the middle of the cell, with rounded corners."""
    beyond_x, beyond_y = abs(x - 0.5) - (half - radius), abs(y - 0.5) - (half - radius)
    outside = np.hypot(np.maximum(beyond_x, 0.0), np.maximum(beyond_y, 0.0))
    return outside + np.minimum(np.maximum(beyond_x, beyond_y), 0.0) - radius


def _segment(x, y, start, end) -> np.ndarray:
    """The (unsigned) distance to a line segment."""
    (x0, y0), (x1, y1) = start, end
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
    along = np.clip(along, 0.0, 1.0)
    return np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))


def _polygon(x, y, corners) -> np.ndarray:
    """A simple polygon; a point is inside if a ray from it crosses the outline an odd number of times."""
    distance = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        distance = np.minimum(distance, _segment(x, y, (x0, y0), (x1, y1)))
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return np.where(inside, -distance, distance)
