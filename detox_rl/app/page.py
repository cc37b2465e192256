"""The page: what is shown of two summaries. It runs no script, and texts are escaped, for they come from strangers."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from detox_rl.report import page as report_page
from detox_rl.report.page import number

TEMPLATES = Path(__file__).with_name("templates")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # with none, a browser would not say either where a form was sent from
    "X-Content-Type-Options": "nosniff",
}


def style() -> str:
    """The report's style sheet and what this page adds to it."""
    files = report_page.TEMPLATES / "report.css", TEMPLATES / "page.css"
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def render(pattern: re.Pattern[str], **said: object) -> str:
    """The page.

    Args:
        pattern: of the words that are marked.
        said: what the template asks for.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "split_at": split_at}
    return environment.get_template("page.html.j2").render(pattern=pattern, **said)


def split_at(text: str, pattern: re.Pattern[str]) -> list[tuple[str, bool]]:
    """A text in pieces, and which of them the pattern found."""
    pieces, end = [], 0
    for found in pattern.finditer(text):
        pieces += [(text[end : found.start()], False), (found[0], True)]
        end = found.end()
    return [*pieces, (text[end:], False)]
