"""A report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable

from .cards import Card
from .gallery import Row
from .sheets import Sheet
from .thumbnails import Thumbnail

_TINY = 96  # pixels: smaller ones are shown larger than they are, each pixel as a square
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
h4{font-size:.85rem;font-weight:600;margin:.9rem 0 .3rem} .hint{color:#666;font-size:.85rem;margin:.2rem 0 .6rem}
.cards{display:flex;flex-wrap:wrap;gap:8px} .card{width:122px;margin:0;break-inside:avoid}
.card img,.card .none{box-sizing:border-box;width:100%;height:96px;object-fit:contain}
.card img,.card .none{background:#f3f3f3;border:2px solid #f3f3f3}
.card .tiny{image-rendering:pixelated} .wrong img,.wrong .none{border-color:#D55E00}
.card figcaption{font-size:.72rem;line-height:1.35;overflow-wrap:anywhere} details{margin-bottom:.4rem}
.card small{display:block;color:#888;font-size:.65rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.published{color:#777;font-style:italic}
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
        f"<tr{' class=published' if place in sheet.published else ''}>"
        + "".join(f"<td{' class=best' if best else ''}>{html.escape(text)}</td>" for text, best in row)
        + "</tr>"
        for place, row in enumerate(sheet.rows)
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


def paragraph(text: str) -> str:
    """A remark."""
    return f"<p class=hint>{html.escape(text)}</p>"


def row(images: Row) -> str:
    """Images side by side, with what there is to say of each."""
    cards = "".join(map(_card, images.cards))
    return f"<h4>{html.escape(images.title)}</h4><div class=cards>{cards or '–'}</div>"


def _card(card: Card) -> str:
    lines = "<br>".join(map(html.escape, card.lines))
    name = html.escape(card.name, quote=True)
    kind = "card wrong" if card.wrong else "card"
    return (
        f'<figure class="{kind}">{_thumbnail(card.thumbnail, name)}'
        f'<figcaption>{lines}<small title="{name}">{name}</small></figcaption></figure>'
    )


def _thumbnail(image: Thumbnail | None, name: str) -> str:
    if image is None:
        return "<div class=none></div>"
    encoded = base64.b64encode(image.content).decode()
    tiny = " class=tiny" if max(image.width, image.height) < _TINY else ""
    return f'<img{tiny} alt="{name}" src="data:{image.kind};base64,{encoded}">'


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
