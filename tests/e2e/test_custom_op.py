"""The example of an operation of one's own runs as it is, in forty lines."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_op.py"


def test_an_operation_of_ones_own_is_built_and_proven_against_its_own_formula() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE.name], cwd=EXAMPLE.parent, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    told, _, error = done.stdout.strip().rpartition(" ")
    assert told == "softplus_adapter: trusted False, validated, error"
    assert float(error) < 1e-12
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
