"""The report of a comparison: one HTML file that needs nothing else and runs nothing.

Sentences, names and settings are text from elsewhere: Jinja escapes all of it, and the page's Content-Security-Policy
allows no script, no address, and no style but its own.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transloom.pipeline.compare.sentences import Sentence
from transloom.pipeline.files import atomic_write

HERE = Path(__file__).parent
SPOKEN = {"right": "differs, as in the reference", "wrong": "differs, not in the reference"}


@dataclass(frozen=True)
class Table:
    """Cells of text under a title. `text` columns go to the left, all others are numbers and go to the right; the first
    column names its row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    text: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """PNG files of the same for light and for dark pages; `description` is for who can't see them."""

    title: str
    light: Path
    dark: Path
    description: str


def write_report(
    path: Path,
    title: str,
    verdicts: Sequence[str],
    parts: Sequence[Table | Picture],
    sentences: Sequence[Sentence] | None,
    notes: Sequence[str],
    languages: Mapping[str, str],
) -> Path:
    """Writes the page.

    Args:
        verdicts: what came out, in sentences.
        parts: what is shown, in this order.
        sentences: side by side, at the end; None: nothing is said of sentences.
        notes: how it was counted.
        languages: of "source" and "target", where they are known, for screen readers.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (HERE / "report.css").read_bytes().decode()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(
        title=title,
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),  # ours, and as it is: the policy has its hash
        verdicts=verdicts,
        parts=[_shown(part) for part in parts],
        sentences=sentences,
        notes=notes,
        languages=languages,
        labels=SPOKEN,
    )
    with atomic_write(path) as file:
        file.write(html.encode())
    return path


def _shown(part: Table | Picture) -> dict[str, object]:
    if isinstance(part, Table):
        return {"table": part, "picture": None}
    return {"table": None, "picture": part, "light": _inline(part.light), "dark": _inline(part.dark)}


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
