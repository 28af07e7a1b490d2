"""One executed example a claim, in cells that notebooks and editors run one by one.

`python -m neuromod.engine.examples.models FOLDER` checks the claim and writes its figures into the folder. They need
the extra `plots`.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def keep(figure: "Figure | SubFigure", name: str) -> None:
    """Write a figure as `name`.png into the folder that the command line names; without one, do nothing."""
    if len(sys.argv) != 2:
        return
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    figure.canvas.print_figure(folder / f"{name}.png", dpi=150)
