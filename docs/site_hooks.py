"""What MkDocs cannot do by itself: pages that are made of other files, and links to files outside docs/."""

import os
import re
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
HELP = "<!-- help of all commands -->"
CARD = re.compile(r"<!-- card: (\S+) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page; returns what is shown of it."""
    markdown = markdown.replace(HELP, help_of_all_commands())
    markdown = CARD.sub(lambda found: card(ROOT / found[1]), markdown)
    folder = ROOT / "docs" / Path(page.file.src_uri).parent
    return LINK.sub(lambda found: link(found, folder), markdown)


def help_of_all_commands() -> str:
    """A heading and the help text of each command, from docs/help."""
    parts = []
    for path in sorted((ROOT / "docs" / "help").glob("*.txt")):
        command = path.read_text(encoding="utf-8").removeprefix("Usage: ").split(" [")[0].split("\n")[0]
        parts.append(f"## {command}\n\n```text\n{path.read_text(encoding='utf-8')}```\n")
    return "\n".join(parts)


def card(path: Path) -> str:
    """A model card without its header and title."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip().partition("\n")[2]


def link(found: re.Match[str], folder: Path) -> str:
    """A link as it is; one to a file of the repository outside docs/, which the site does not hold, as its text."""
    target = Path(os.path.normpath(folder / found[2]))
    outside = target.exists() and not target.is_relative_to(ROOT / "docs")
    return found[1] if outside else found[0]
