"""For mkdocs: files of the repository that are no pages are named where a document links to them."""

import re

_OUTSIDE = re.compile(r"!?\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_) -> str:
    return _OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}` in the repository)", markdown)
