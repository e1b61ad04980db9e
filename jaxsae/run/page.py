"""A page that needs nothing else: HTML with its style and its pictures inside. Readable on a phone and in the dark."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5f6368; --line: #d9d9de; --back: #ffffff; --card: #f5f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --soft: #a0a4aa; --line: #3a3a3f; --back: #151517; --card: #1f1f22; }
  img { filter: invert(0.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0 auto; padding: 1rem;
  max-width: 62rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, li, dd { max-width: 44rem; }
.soft { color: var(--soft); font-size: 0.9rem; }
.failed { border-left: 4px solid #d1453b; padding: 0.2rem 0.8rem; background: var(--card); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; gap: 0.2rem; }
dt { font-family: ui-monospace, monospace; font-size: 0.9rem; margin-top: 0.5rem; }
dd { margin: 0; font-size: 0.95rem; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; color: var(--soft); }
img { max-width: 100%; height: auto; border-radius: 6px; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: 0.9rem; }
nav a { color: inherit; margin-right: 1rem; white-space: nowrap; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document of HTML `parts`."""
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join((f"<h1>{text(title)}</h1>", *parts))
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def text(value) -> str:
    """Text that is safe inside HTML."""
    return html.escape(str(value))


def paragraph(value: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = lambda tag, row: "".join(f"<{tag}>{text(cell)}</{tag}>" for cell in row)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


def definitions(items: Mapping[str, str]) -> str:
    """A list of terms and what they mean."""
    return f"<dl>{''.join(f'<dt>{text(term)}</dt><dd>{text(said)}</dd>' for term, said in items.items())}</dl>"


def details(title: str, inside: str, open: bool = True) -> str:
    """A part that can be folded away, or is at first."""
    return f"<details{' open' if open else ''}><summary>{text(title)}</summary>{inside}</details>"


def picture(path: Path, caption: str = "") -> str:
    """A PNG file inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = text(caption or path.stem)
    note = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}">{note}</figure>'


def number(value) -> str:
    """A number with four digits that count; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
