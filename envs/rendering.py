"""Text and pictures of the grid, with NumPy alone."""

from functools import lru_cache

import numpy as np

PICTURE_PIXELS = 768  # the longer side of a picture, roughly
CELL_PIXELS = (8, 64)  # a cell is never smaller or larger than this
POINTS_PER_PIXEL = 4  # along each axis

# blue, vermilion and bluish green of Okabe and Ito stay apart for colour-blind eyes; shapes differ as well
BLUE, VERMILION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)
WHITE, INK, PAGE, SKY = (255, 255, 255), (28, 42, 58), (203, 210, 218), (207, 228, 243)
GROUND = {"H": VERMILION, "G": GREEN, "S": SKY, ".": (242, 245, 248)}
MARKS = {"S": ("ring", BLUE), "H": ("triangle", WHITE), "G": ("diamond", WHITE)}
SHAPES = {  # whether a point of the unit square of a cell lies inside; x to the right, y downwards
    "tile": lambda x, y: np.maximum(abs(x - 0.5), abs(y - 0.5)) < 0.47,
    "ring": lambda x, y: abs(np.hypot(x - 0.5, y - 0.5) - 0.27) < 0.035,
    "triangle": lambda x, y: (abs(x - 0.5) < (y - 0.22) / 1.8) & (y < 0.74),
    "diamond": lambda x, y: abs(x - 0.5) + abs(y - 0.5) < 0.34,
    "rim": lambda x, y: np.hypot(x - 0.5, y - 0.5) < 0.39,
    "disc": lambda x, y: np.hypot(x - 0.5, y - 0.5) < 0.33,
}


def text(desc: tuple[str, ...], agent: tuple[int, int]) -> str:
    """The map as text, one line per row, the cell (row, column) of the agent in brackets."""
    return "".join("".join(f"[{cell}]" if (i, j) == agent else f" {cell} " for j, cell in enumerate(cells)) + "\n"
                   for i, cells in enumerate(desc))


def picture(desc: tuple[str, ...], agent: tuple[int, int] | None = None) -> np.ndarray:
    """The map, with the agent on the cell (row, column), as uint8 ``[height, width, 3]``; both sides are even."""
    smallest, largest = CELL_PIXELS
    size = min(max(PICTURE_PIXELS // max(len(desc), len(desc[0])), smallest), largest) // 2 * 2  # as video codecs ask
    return np.concatenate([np.concatenate([_cell(cell, (i, j) == agent, size) for j, cell in enumerate(cells)], axis=1)
                           for i, cells in enumerate(desc)])


@lru_cache(maxsize=64)
def _cell(cell: str, with_agent: bool, size: int) -> np.ndarray:
    """The picture of one cell, uint8 ``[size, size, 3]``."""
    layers = [("tile", GROUND[cell]), *([MARKS[cell]] if cell in MARKS else [])]
    if with_agent:
        layers += [("rim", WHITE), ("disc", INK if cell == "H" else BLUE)]
    points = (np.arange(size * POINTS_PER_PIXEL) + 0.5) / (size * POINTS_PER_PIXEL)
    result = np.full((size, size, 3), PAGE, dtype=np.float64)
    for shape, colour in layers:
        inside = SHAPES[shape](points[None], points[:, None]).reshape(size, POINTS_PER_PIXEL, size, POINTS_PER_PIXEL)
        share = inside.mean((1, 3))[..., None]  # of each pixel that the shape covers
        result = (1 - share) * result + share * np.array(colour)
    return np.rint(result).astype(np.uint8)
