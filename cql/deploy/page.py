"""The page at /: one document that loads nothing, and headers that let it load nothing."""

import base64
import hashlib
from importlib.resources import files


def _text(name: str, package: str = "cql.deploy") -> str:
    return (files(package) / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """What a content security policy calls an inline script or style (CSP level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = _text("page.css"), _text("map.js", "cql.analysis.report") + _text("page.js")
PAGE = _text("page.html").replace("/*style*/", _STYLE).replace("/*script*/", _SCRIPT)
PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    "Referrer-Policy": "no-referrer",
}
