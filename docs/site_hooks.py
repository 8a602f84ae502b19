"""For MkDocs: our blocks say behind their language whether they are executed, which its Markdown does not know."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page without those words."""
    return re.sub(r"^( *```\w+) [\w-]+$", r"\1", markdown, flags=re.MULTILINE)
