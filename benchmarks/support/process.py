"""A measurement in a process of its own.

What lies where in memory is drawn anew in each process. On a bare layer, one process in twelve came out 1.2 % off in the ratio
of two equal costs, however often it repeated the measurement; several processes average that out.
"""

import json
import subprocess
import sys
from importlib import import_module

from benchmarks.support.report import ROOT


def in_process(function: str, **arguments: object) -> object:
    """Call a function in a fresh interpreter.

    Args:
        function: Its place, as ``package.module:name``.
        **arguments: What it is called with; JSON can say it.

    Returns:
        What it returned, after a journey through JSON.
    """
    command = [sys.executable, "-m", "benchmarks.support.process", function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: object = json.loads(done.stdout)
    return result


def main(function: str, arguments: str) -> None:
    """Call a function and print what it returned."""
    module, _, name = function.partition(":")
    print(json.dumps(getattr(import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
