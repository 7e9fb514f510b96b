"""The one skeleton of this project's HTML pages: reports of runs, explanations, benchmarks.

A page is one file: no scripts, no files beside it, nothing from the network; readable on a phone and on paper.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; background: #fff; max-width: 75rem; margin: 24px auto;
  padding: 0 16px; overflow-wrap: anywhere; }
h1 { font-size: 26px; margin-bottom: 4px; } h2 { font-size: 19px; margin-top: 32px; } h3 { font-size: 15px; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid #e3e5e8; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; } td.number { white-space: nowrap; }
.tables { overflow-x: auto; overflow-wrap: normal; } .note { color: #5f6368; font-size: 13px; max-width: 900px; }
.fault { color: #a50e0e; } code { background: #f1f3f4; padding: 1px 4px; overflow-wrap: anywhere; }
figure { display: inline-block; vertical-align: top; margin: 6px 10px 6px 0; max-width: 100%; }
figure img { max-width: 100%; display: block; } figcaption { color: #5f6368; font-size: 13px; max-width: 24rem; }
svg { max-width: 100%; }
.facts th { min-width: 7rem; font-weight: 600; }
@media (max-width: 640px) {
  .facts th, .facts td { display: block; padding-right: 0; } .facts th { border-bottom: none; padding-bottom: 0; }
}
"""


def web_page(title: str, body: Sequence[str], *, style: str = "") -> str:
    """A complete page.

    Args:
        title: plain text.
        body: parts in HTML; empty ones are left out.
        style: CSS that only this page needs.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def figure(data: bytes, caption: str, *, kind: str = "jpeg", width: int | None = None) -> str:
    """An image inside the page.

    Args:
        data: bytes of the image file.
        kind: `jpeg` or `png`.
        width: shown width, CSS pixels; None shows the image's own.
    """
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    size = "" if width is None else f' width="{width}"'
    return f'<figure><img src="{source}" alt=""{size}><figcaption>{escape(caption)}</figcaption></figure>'


def facts(values: Mapping[str, str] | Sequence[tuple[str, str]], *, code: Sequence[str] = ()) -> str:
    """A table of names and values; the values of the names in `code` are shown as code."""
    rows = values.items() if isinstance(values, Mapping) else values
    cells = ((escape(name), f"<code>{escape(value)}</code>" if name in code else escape(value)) for name, value in rows)
    lines = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
    return f'<table class="facts">{lines}</table>'
