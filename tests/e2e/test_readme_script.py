"""The README's script runs as people run scripts: from a file without a main guard, from standard input, in a notebook."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

README = Path(__file__).parents[2] / "README.md"
LIMIT_S = 100


@pytest.fixture(scope="module")
def script() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "the README has no script"
    return "import torch; torch.set_num_threads(1)\n" + found[1]


def _check(output: str) -> None:
    assert re.search(r"^step \d+: grafted \w+ at \S+ \(\+[\d.]+ % params\): ", output, re.MULTILINE), output


def test_it_runs_from_a_file_without_a_main_guard(script: str, tmp_path: Path) -> None:
    path = tmp_path / "my script.py"
    path.write_text(script)
    ended = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    _check(ended.stdout)


def test_it_runs_from_standard_input(script: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    _check(ended.stdout)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_in_a_notebook_kernel(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = script.split("\n\n\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = NotebookClient(
        notebook, timeout=LIMIT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.outputs if output.get("name") == "stdout"
    )
    _check(printed)
