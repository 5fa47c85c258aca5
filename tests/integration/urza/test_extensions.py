"""A store over HTTP takes designs with operations of one's own where it knows their shape rules."""

from pathlib import Path

import pytest

from esper.errors import ConfigError, InvalidBlueprint
from esper.ir import BlueprintIR, Graph, Layout, OpSpec, ops
from esper.services.clients import UrzaClient
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.forging import request_for
from esper.testing.store_server import served

NAME = "users.halve"
MODULE = f"from esper.ir import OpSpec, ops\nops.register(OpSpec({NAME!r}))\n"


def design() -> BlueprintIR:
    """Return a design with the operation, which must be known."""
    graph = Graph(Layout.FEATURES, 8)
    hidden = graph.apply(NAME, graph.linear(graph.input, out=4))
    return graph.finish(graph.linear(hidden, out=8, init="zero"), "halving")


async def test_a_design_is_taken_once_its_operation_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes_of_users.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    ops.register(OpSpec(NAME))
    request = request_for(design())
    ops.unregister(NAME)
    async with await KernelManager.open(tmp_path / "library") as manager:
        async with served(manager) as address, UrzaClient(address) as client:
            with pytest.raises(InvalidBlueprint, match=NAME):
                await client.submit(request)
        config = UrzaConfig(extensions=("shapes_of_users",))
        try:
            async with served(manager, config) as address, UrzaClient(address) as client:
                assert (await client.submit(request)).blueprint_id == design().digest
        finally:
            ops.unregister(NAME)


@pytest.mark.parametrize("module", ["no_such_module", "raises_at_once"])
def test_what_cannot_be_imported_is_named(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_at_once.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=f"{module}.*cannot be imported"):
        ops.install([module])
