"""Write ``docs/benchmarks.md``: every benchmark's question, command and control, and the bars of its committed results.

python -m tools.benchmarks          write it
python -m tools.benchmarks --check  exit with 1 where it is not what the benchmarks and their results give
"""

import argparse
import ast
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import module, names
from benchmarks.support.report import Target

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
WIDTH = 140

CONTROLS = {
    "beside": "the same steps with the forge held, in pairs whose order is drawn",
    "chaos-bus": "readers that are wrong on purpose, which the checker has to find",
    "chaos-urza": "faults planted in what is left, which the checker has to find",
    "compiled": "the same network written by hand, eager and compiled, and a second copy of it",
    "dormant": "the host as it is, and a second copy of it",
    "graft": "the same done by hand",
    "gromo": "GroMo's three births, and static networks of both sizes",
    "growth": "static sizes, the final size from the start, the small network trained on, random growth, PEFT's LoRA and AdaLoRA",
    "hostile": "other code that looks again at what passed, and the kernels of the same training before and after the flood",
    "kills": "the unbroken run, and runs resumed without torch's generator, which the comparison has to tell",
    "oona": "`asyncio.Queue`, redis-py and FastStream at the same job in the same rounds",
    "signals": "the same step of a copy that nothing watches, and of a second such copy",
    "startup": "the bare interpreter, and `import torch`",
    "surgery": "one training step, the same done by hand, and safetensors alone",
    "tezzeret": "the eager kernel in turns with each form, and the parts of a build one by one",
    "urza": "one row by its key, in libraries of rising size",
    "urza-http": "MLflow's registry at the same job in the same run",
}
"""What each benchmark is held against."""

_HEAD = """# Benchmarks

<!-- Made by python -m tools.benchmarks from benchmarks/ and benchmarks/results; do not edit. -->

Every benchmark asks one question, does the work beside a control in the same run, and holds what it found against bars that
were set before. `python -m benchmarks NAME` prints what this page is made from; `--json` prints one object, `--out FILE` writes
it, `--quick` shows in short how it works, and proves nothing. Results are committed as they came out, bars that were missed
included, with commit, hardware, versions and seed. Where cores are few and shared, trust ratios, not times.

What the growth study asks and how, has [a page of its own](growth-benchmark.md); demos have [theirs](demos.md).

| benchmark | question | committed result |
|---|---|---|
"""


def page() -> str:
    """Return the page."""
    found = results()
    rows = [f"| [{name}](#{name}) | {question(name)[0]} | {_summary(found.get(name, []))} |" for name in names()]
    sections = ["\n".join(_section(name, found.get(name, []))) for name in names()]
    return _HEAD + "\n".join(rows) + "\n\n" + "\n\n".join(sections) + "\n"


def results() -> dict[str, list[dict[str, Any]]]:
    """Return committed reports by the name of their benchmark, in the order of their files."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(report["name"], []).append({**report, "file": file.name})
    return found


def question(name: str) -> tuple[str, str]:
    """Return what a benchmark asks, and how it goes about it, from its own docstring; nothing is imported."""
    path = ROOT / module(name).replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    asked, _, method = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")
    return _line(asked), _line(method)


def targets(report: dict[str, Any]) -> list[Target]:
    """Return the bars of a report; whether they are met follows from what was measured."""
    return [Target(bar["metric"], bar["op"], bar["value"], bar["measured"]) for bar in report["targets"]]


def _summary(reports: list[dict[str, Any]]) -> str:
    if not reports:
        return "not run whole yet"
    bars = [target for report in reports for target in targets(report)]
    return f"{sum(target.met for target in bars)} of {len(bars)} bars met"


def _section(name: str, reports: list[dict[str, Any]]) -> Iterator[str]:
    asked, method = question(name)
    yield f"## {name}"
    yield ""
    yield textwrap.fill(f"{asked} {method}".strip(), WIDTH)
    yield ""
    yield f"- Command: `python -m benchmarks {name}`"
    yield f"- Held against: {CONTROLS[name]}"
    if not reports:
        yield "- Result: not run whole yet"
    for report in reports:
        yield f"- Result: [{report['file']}](../benchmarks/results/{report['file']}), {_where(report)}"
        yield ""
        yield "| measured | figure | bar | |"
        yield "|---|---|---|---|"
        for bar in targets(report):
            met = "met" if bar.met else "**unmet**"
            yield f"| {bar.metric} | {_figure(bar.measured)} | {bar.op} {_figure(bar.value)} | {met} |"
        for table in report.get("tables", ()):
            yield from _study(table)


def _study(table: dict[str, Any]) -> Iterator[str]:
    """Yield a study's arms by falling points."""
    reference = table["reference"]
    yield ""
    yield f"### {table['use']}, {table['task']}"
    yield ""
    yield f"Means over seeds ± one standard error; how far *{reference}* lies above each arm ± the interval of the whole table."
    yield ""
    yield "| arm | points | loss | parameters | GFLOP | its own share | rate | above it |"
    yield "|---|---|---|---|---|---|---|---|"
    rows = table["arms"].items()
    for arm, row in sorted(rows, key=lambda item: -item[1]["test_mean"]):
        found = row["reference_less_this"]
        chosen = table["tuning"].get(arm, {})
        rate = f"{chosen['rate']:g}{' (edge)' if chosen['at_edge'] else ''}" if chosen else ""
        above = "" if arm == reference else f"{found['mean']:+.2f} ± {found['interval']:.2f}"
        yield (
            f"| {arm} | {row['test_mean']:.2f} ± {row['test_error']:.2f} | {row['test_loss']:.4f} ± {row['test_loss_error']:.4f} "
            f"| {row['params']:,} | {row['gflops']:,.1f} | {row['overhead_share']:.1%} | {rate} | {above} |"
        )


def _where(report: dict[str, Any]) -> str:
    hardware = report["hardware"]
    return f"commit {report['commit'][:7]}, {hardware['cores']} cores of {hardware['cpu']}, torch {report['versions']['torch']}"


def _line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is another")
    given = parser.parse_args(arguments)
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} {'is not what the benchmarks give' if given.check else 'written'}")
    if given.check:
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
