"""Pieces of the report's page: tables, pictures, numbers and JSON as HTML. What comes from files is escaped by who puts it in."""

import base64
import json
import re
from html import escape
from importlib import resources
from pathlib import Path


def fill(template: str, slots: dict[str, str]) -> str:
    """Puts each slot's text for ``{{its name}}``, once: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: slots[found[1]], template)


def shipped(name: str) -> str:
    """A file that lies beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8").rstrip("\n")


def embedded(name: str, value) -> str:
    """JSON in a script element; no text in it can end the element or begin another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def table(heads: list[str], rows: list[list[str]], caption: str, words: tuple[int, ...] = ()) -> str:
    """A table that scrolls by itself where it is too wide.

    Args:
        heads, rows: cells, HTML already; the first of a row names it. caption: text; words: the columns that hold words.
    """
    def cell(n, content, head):
        name = ' class="words"' * (n in words)
        return f'<th scope="col"{name}>{content}</th>' if head else (
            f'<th scope="row">{content}</th>' if n == 0 else f"<td{name}>{content}</td>")

    def line(cells, head=False):
        return "<tr>" + "".join(cell(n, content, head) for n, content in enumerate(cells)) + "</tr>"
    look = ' class="prose"' * bool(words)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{look}>'
            f"<caption>{escape(caption)}</caption><thead>{line(heads, True)}</thead>\n<tbody>"
            + "\n".join(map(line, rows)) + "</tbody></table></div>\n")


def picture(path: Path | None, caption: str, instead: str) -> str:
    """A picture within the page; nothing where there is none. caption: HTML; instead: for who cannot see it."""
    if path is None:
        return ""
    data, instead = base64.b64encode(path.read_bytes()).decode(), escape(instead)
    return (f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{instead}"><img alt="{instead}" '
            f'src="data:image/png;base64,{data}"></div><figcaption>{caption}</figcaption></figure>\n')


def paragraph(html: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html}</p>\n' if kind else f"<p>{html}</p>\n"


def number(value, form: str = ".2f") -> str:
    """With a true minus; a dash for None. Numbers too large for their form take a power of ten."""
    if value is None:
        return "–"
    form = ".2e" if abs(value) >= 1e5 and form.endswith("f") else form
    return format(value, form).replace("-", "−").replace("%", "\u00a0%")


def estimate(found, form: str = ".2f") -> str:
    """[estimate, low, high] as a cell: the interval below, where there is one."""
    if found is None:
        return "–"
    return number(found[0], form) + ("" if found[1] is None else f"<small>{_ends(found, form)}</small>")


def inline(found, form: str = ".2f") -> str:
    """[estimate, low, high] within a sentence."""
    return number(found[0], form) + ("" if found[1] is None else f" ({_ends(found, form)})")


def _ends(found, form) -> str:
    return f"{number(found[1], form)} … {number(found[2], form)}"
