"""Quality against FLOPs: one picture for each study, with the front that no arm is beyond."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the arms that no other beats in FLOPs and points at once, by rising FLOPs.

    Args:
        points: FLOPs and points by arm.
    """
    found: list[str] = []
    best = float("-inf")
    for arm, (_, reached) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if reached > best:
            found.append(arm)
            best = reached
    return found


def draw(tables: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the studies of a report; equal tables give equal bytes.

    Args:
        tables: As `Study.to_json` returns them.
        folder: Where the pictures go, one SVG for each study.

    Returns:
        The files.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "esper", "font.size": 8}):
        return [_drawn(table, folder) for table in tables]


def _drawn(table: Mapping[str, Any], folder: Path) -> Path:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows: Mapping[str, Mapping[str, Any]] = table["arms"]
    points = {arm: (row["gflops"], row["test_mean"]) for arm, row in rows.items()}
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for arm, (spent, reached) in points.items():
        error = rows[arm]["test_error"]
        at = axes.errorbar(
            spent, reached, yerr=error if error < float("inf") else None, fmt="o", capsize=2,
            markersize=5 if arm == table["reference"] else 3,
        )  # fmt: skip
        axes.annotate(arm, (spent, reached), xytext=(4, 3), textcoords="offset points", color=at[0].get_color())
    edge = [points[arm] for arm in front(points)]
    axes.plot(*zip(*edge, strict=True), linewidth=0.8, color="0.6", zorder=0)
    axes.set(
        xscale="log", xlabel="GFLOPs of training", ylabel="test points ± standard error",
        title=f"{table['use']}: {table['task']}",
    )  # fmt: skip
    file = folder / f"{table['use']}-{table['task']}.svg".replace(" ", "-")
    figure.savefig(file, metadata={"Date": None})
    return file
