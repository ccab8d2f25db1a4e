"""One HTML page with all pictures inside it, which opens without a network."""

from __future__ import annotations

import base64
from html import escape

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; }
body { padding: 0 1rem; color: #111; } h1 { font-size: 1.4rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; border-top: 1px solid #ccc; padding-top: 1rem; }
img { max-width: 100%; height: auto; } nav a { margin-right: 1rem; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .85rem; } @media print { nav { display: none; } }
"""


def page(title: str, sections: dict[str, list[tuple[str, bytes]]]) -> str:
    """The page: for each section its pictures, (caption, PNG)."""
    links = "".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(sections))
    body = "".join(
        f'<h2 id="s{i}">{escape(name)}</h2>{"".join(_figure(*each) for each in pictures)}'
        for i, (name, pictures) in enumerate(sections.items())
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def _figure(caption: str, picture: bytes) -> str:
    data, text = base64.b64encode(picture).decode(), escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
