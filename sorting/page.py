"""Pages for people: one HTML file each, with its figures inside. What reports have in common."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, ACCENT, PALE = "#1b1b1b", "#0b5cad", "#b8b8b8"
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:1.6em 0 .4em}
table{border-collapse:collapse;font-size:13px}th,td{padding:2px 10px 2px 0;text-align:left;vertical-align:top}
th{border-bottom:1px solid #888;position:sticky;top:0;background:#fff}tr:nth-child(even) td{background:#f4f4f4}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%;height:auto;display:block}
p.small{color:#444;font-size:13px}
"""


def write_page(path: Path, title: str, parts: Sequence[str], style: str = "") -> Path:
    """Write a page, whole or not at all.

    Parameters
    ----------
    path : Path
        File to write.
    title : str
        Of the page.
    parts : sequence of str
        HTML of its body.
    style : str
        CSS beyond `STYLE`.
    """
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{style}</style></head><body>'
        + "\n".join(parts)
        + "</body></html>\n"
    )
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def escaped(words: object) -> str:
    """Return words as HTML."""
    return html.escape(str(words))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | range = ()) -> str:
    """Return a table; `numbers` are the columns to align on the right."""
    titles = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if i in numbers else ''}>{escaped(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def image(figure: Any, words: str, *, dpi: int = 80) -> str:
    """Return a figure of matplotlib as an image; `words` say what it shows where it cannot be seen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(words, quote=True)}" src="data:image/png;base64,{data}">'


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Any) -> None:
    """Take away of axes what tells nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.title.set_fontsize(8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
