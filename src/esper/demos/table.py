"""What a demo prints: growth as it happens, and the table of arms in words that do not flatter."""

from collections.abc import Iterator

from rich.table import Table

from esper.demos.arms import Arm
from esper.demos.comparison import Comparison, Standing
from esper.demos.measures import Measure
from esper.demos.messages import Grown

VERBS = {
    "grafted": "graft",
    "kept": "keep",
    "culled": "cull",
    "rolled_back": "roll back",
    "cancelled": "cancel",
    "late": "late",
    "unasked": "unasked",
}


def event_line(event: Grown, measure: Measure) -> str:
    """Return one event as a line: when, how good the model was, what happened where, and why."""
    place = f"  {event.blueprint}@{event.slot}" if event.slot else ""
    size = f"  +{event.added_params:,} params" if event.action == "grafted" else ""
    verb = VERBS.get(event.action, event.action)
    when = f"seed {event.seed}  step {event.step:<5} val {measure.written(measure.of(event.validation))}"
    return f"{when}  {verb:<6}{place}{size}   why: {event.why}"


def table_of(comparison: Comparison) -> Table:
    """Return the arms as a table; FLOPs are relative to static small."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    measures = comparison.measures
    for heading in ("params", *(f"test {measure.name}" for measure in measures), "training FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("esper beside it", no_wrap=True)
    small = comparison.row(Arm.STATIC_SMALL).train_flops
    for row in comparison.rows:
        beside = "" if row.arm is Arm.ESPER else _difference(comparison, row.arm)
        table.add_row(
            row.arm.label,
            f"{row.params:,}",
            *(measure.spread(test.mean, test.sd) for measure, test in zip(measures, row.tests, strict=True)),
            f"{row.train_flops / small:.1f}x",
            beside,
            style="bold" if row.arm is Arm.ESPER else None,
        )
    return table


def verdict_lines(comparison: Comparison) -> Iterator[str]:
    """Say for each control how esper stands beside it, and at what share of its FLOPs; then who beats it."""
    for verdict in comparison.verdicts:
        yield f"esper beside {verdict.control.label}: {verdict}, at {verdict.flops_ratio:.2f}x its FLOPs"
    winners = [verdict.control.label for verdict in comparison.verdicts if verdict.standing is Standing.LOSES]
    if winners:
        yield f"here esper loses to {' and to '.join(winners)}"


def _difference(comparison: Comparison, control: Arm) -> str:
    verdict = comparison.verdict(control)
    return verdict.measure.paired(verdict.difference, verdict.error)
