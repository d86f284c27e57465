"""A report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from .sheets import Sheet

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff}
body{max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0} .sub{color:#666;margin:0 0 1.5rem}
h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-bottom:1px solid #ddd;padding-bottom:.3rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
.wide{overflow-x:auto} table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.28rem .8rem;text-align:right;white-space:nowrap;border-bottom:1px solid #eee}
th{font-weight:600;color:#555;border-bottom:1px solid #999}
th:first-child,td:first-child{text-align:left;padding-left:0}
.best{font-weight:700} figure{margin:1rem 0} img{max-width:100%;height:auto;display:block}
figcaption{color:#666;font-size:.85rem;margin-top:.2rem}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
"""
# The policy keeps the page from loading anything: all it shows is inside it.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>{body}</body></html>
"""


def table(sheet: Sheet) -> str:
    """A table with its title."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in sheet.columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=best' if best else ''}>{html.escape(text)}</td>" for text, best in row)
        + "</tr>"
        for row in sheet.rows
    )
    return f"<h3>{html.escape(sheet.title)}</h3><div class=wide><table><tr>{head}</tr>{body}</table></div>"


def picture(png: bytes, width: int, caption: str) -> str:
    """A PNG, ``width`` CSS pixels wide, inside the page."""
    encoded = base64.b64encode(png).decode()
    alt = html.escape(caption, quote=True)
    return (
        f'<figure><img width={width} alt="{alt}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def foldable(title: str, content: str, unfolded: bool) -> str:
    """HTML that can be folded under its title."""
    opened = " open" if unfolded else ""
    return f"<details{opened}><summary>{html.escape(title)}</summary>{content}</details>"


def points(texts: Iterable[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def document(title: str, subtitle: str, blocks: Iterable[str]) -> str:
    """The file."""
    safe_title = html.escape(title)
    body = f"<h1>{safe_title}</h1><p class=sub>{html.escape(subtitle)}</p>" + "\n".join(blocks)
    return _PAGE.format(title=safe_title, style=_STYLE, body=body)
