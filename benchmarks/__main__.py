"""The runner of the benchmarks.

Exit codes are those of the ``esper`` command: 0 every target was met, 2 wrong usage, 3 no such benchmark, 4 a target was
missed. The object is printed in either case.
"""

import argparse
import sys
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path

from benchmarks.support.report import dumps, report, table

MET, USAGE, UNKNOWN, MISSED = 0, 2, 3, 4
OPTIONS: dict[str, tuple[type, str]] = {
    "only": (str, "parts to run, separated by commas, for benchmarks that have some"),
    "texts": (Path, "folder of texts, for benchmarks that read some"),
    "pictures": (Path, "folder for pictures, for benchmarks that draw some"),
    "work": (Path, "folder where a long benchmark keeps what it has"),
}
"""Options that some benchmarks take, with their types."""


def names() -> list[str]:
    """Return the benchmarks that there are: every file of this folder is one, and so is the folder of a large one."""
    here = Path(__file__).resolve().parent
    found = [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")]
    return sorted(name.replace("_", "-") for name in found if not name.startswith("__") and name != "support")


def module(name: str) -> str:
    """Return the module of a benchmark."""
    return f"benchmarks.{name.replace('-', '_')}"


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        arguments: Command line; that of the process where it is left out.

    Returns:
        The exit code.
    """
    given = _parser().parse_args(arguments)
    if given.name not in names():
        near = get_close_matches(given.name, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        print(f"no benchmark {given.name!r}: {hint}", file=sys.stderr)
        return UNKNOWN
    question = import_module(module(given.name))
    options = {name: value for name in OPTIONS if (value := getattr(given, name)) is not None}
    unused = set(options) - set(signature(question.answer).parameters)
    if unused:
        print(f"{given.name} takes no --{min(unused)}", file=sys.stderr)
        return USAGE
    answer = question.answer(quick=given.quick, seed=given.seed, **options)
    found = report(given.name, answer, seed=given.seed, quick=given.quick)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(dumps(found), encoding="utf-8")
    print(dumps(found) if given.json else table(found), end="" if given.json else "\n")
    return MET if all(target.met for target in answer.targets) else MISSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Answer one question with figures.")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(names())}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: to see that it runs, not for figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--seed", type=int, default=0, help="seed of models, data and order (default 0)")
    for name, (kind, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, metavar="DIR" if kind is Path else "PARTS", help=meaning)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object to a file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
