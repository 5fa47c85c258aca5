"""What importing costs: parts that need no torch bring none, and importing says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

TORCH_FREE = (
    "esper.errors",
    "esper.ir",
    "esper.reference",
    "esper.contracts",
    "esper.ports",
    "esper.telemetry",
    "esper.runtime",
    "esper.signing",
    "esper.settings",
    "esper.detect",
    "esper.services.contracts",
    "esper.services.oona",
    "esper.services.urza",
    "esper.services.nissa",
)
EVERYTHING_IN = """
import importlib, pkgutil, sys
package = importlib.import_module({name!r})
for found in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(found.name)
"""


def run(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter and return everything that it said, on either stream."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def has_torch(name: str, folder: Path) -> bool:
    """Say whether importing a package with all its modules brings torch along."""
    return run(EVERYTHING_IN.format(name=name) + "print('torch' in sys.modules)", folder).strip() == "True"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_a_part_that_needs_no_torch_brings_none(name: str, tmp_path: Path) -> None:
    assert not has_torch(name, tmp_path)


def test_a_part_that_needs_torch_is_noticed(tmp_path: Path) -> None:
    assert has_torch("esper.blueprints", tmp_path)


def test_importing_esper_says_nothing_and_brings_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "pydantic", "sqlalchemy", "typer", "rich", "sklearn", "asyncio")
    code = f"import esper, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run(code, tmp_path) == "[]\n"
    assert run("import esper", tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there_and_is_silent_when_it_is_first_used(tmp_path: Path) -> None:
    code = (
        "import esper\nfor name in esper.__all__: assert getattr(esper, name) is not None, name\n"
        "print(set(dir(esper)) >= set(esper.__all__))"
    )
    assert run(code, tmp_path) == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_esper_has_not_is_an_attribute_error(tmp_path: Path) -> None:
    code = "import esper\ntry: esper.nonsense\nexcept AttributeError as error: print(error)"
    assert run(code, tmp_path) == "module 'esper' has no attribute 'nonsense'\n"


def test_importing_draws_no_random_number(tmp_path: Path) -> None:
    code = (
        "import random, numpy, torch\n"
        "before = random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state()\n"
        "import esper\nfor name in esper.__all__: getattr(esper, name)\n"
        "print(random.getstate() == before[0], repr(numpy.random.get_state()) == before[1], "
        "torch.equal(torch.get_rng_state(), before[2]))"
    )
    assert run(code, tmp_path) == "True True True\n"


def test_a_training_that_grows_does_not_bring_the_compiler(tmp_path: Path) -> None:
    code = "import esper, esper.services.tolaria.attachment, sys; esper.wrap, esper.attach; print('torch._dynamo' in sys.modules)"
    assert run(code, tmp_path) == "False\n"
