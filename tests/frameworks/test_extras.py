"""Without its library, an integration says which extra to install; and nothing else of Esper needs one."""

import subprocess
import sys

import pytest

BLOCKED = """
import sys
sys.modules["{library}"] = None
import esper, esper.assembly
from esper.errors import ConfigError
try:
    import esper.integrations.{module}
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "library"), [("lightning", "lightning"), ("transformers", "transformers"), ("accelerate", "accelerate")]
)
def test_an_integration_without_its_library_names_the_extra(module: str, library: str) -> None:
    script = BLOCKED.format(module=module, library=library)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    extra = "lightning" if module == "lightning" else "transformers"
    assert f'pip install "esper-morphogenesis[{extra}]"' in done.stdout
    assert done.stdout.startswith("ESP-2460")
