"""Work in a process of its own."""

import os
import subprocess

import pytest

from benchmarks.support.process import in_process


def test_a_function_runs_elsewhere_and_its_result_comes_back() -> None:
    assert in_process("os:getpid") not in (None, os.getpid())
    assert in_process("json:dumps", obj={"a": [1, None, 0.5]}) == '{"a": [1, null, 0.5]}'


def test_a_function_that_fails_there_fails_here(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        in_process("os:nonsense")
    assert "nonsense" in capfd.readouterr().err
