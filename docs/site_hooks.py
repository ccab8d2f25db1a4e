"""For mkdocs: links that leave docs/ become plain text, since the site holds these pages only."""

import re

_OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./[^)]*|[^):]*\.ipynb)\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    return _OUTSIDE.sub(r"\1", markdown)
