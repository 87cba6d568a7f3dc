"""Tables and numbers for the terminal."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table, every column as wide as its widest cell; the columns ``left`` are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) if n in left else cell.rjust(width)
                      for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def number(value: float | None, form: str = ".2f") -> str:
    """The value in this format; a dash where it is not known (None)."""
    return "–" if value is None else format(value, form)


def interval(estimate: Sequence[float | None] | None, form: str = ".2f") -> str:
    """``18.43 [15.20, 20.90]`` for [estimate, low, high]; no brackets where low is None, a dash for None."""
    value, low, high = estimate or (None, None, None)
    return number(value, form) + ("" if low is None else f" [{number(low, form)}, {number(high, form)}]")


def counted(many: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{many:,} {what}{'s' * (many != 1)}"
