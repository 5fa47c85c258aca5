"""The snippets of the page about other libraries run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
SNIPPETS = re.findall(r"^<!-- run in frameworks -->\n```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_has_a_snippet_for_each_callback() -> None:
    assert len(SNIPPETS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=["lightning", "transformers"])
def test_a_snippet_runs(snippet: str, tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text(f"import torch\ntorch.set_num_threads(1)\n{snippet}", encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
