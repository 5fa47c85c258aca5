"""A folded model is loaded and trained where Esper is not installed."""

import importlib
import io
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import esper.testing.zoo
from esper.kasmina import wrap
from esper.testing.zoo import ZOO, Batch
from tests.laws.support import graft, output
from tests.unit.kasmina.folding import folded, grown, names_in, stir

LOADING = """
import sys
forbidden = []
class Forbids:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "esper":
            forbidden.append(name)
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Forbids())
sys.path += [{folder!r}, {packages!r}]
try:
    import esper
except ImportError:
    forbidden.clear()
else:
    raise SystemExit("esper is here")
import torch
torch.set_num_threads(1)
for name, (model, x, y) in torch.load({file!r}, weights_only=False).items():
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-6, atol=1e-6)
    assert "GraphModule" in str([type(m).__mro__ for m in model.modules()]), name
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters()), name
    print(name)
assert not forbidden, forbidden
"""


def own_hosts(folder: Path) -> ModuleType:
    """Import the hosts of the zoo from a file of the user's, which needs torch alone."""
    text = Path(esper.testing.zoo.__file__).read_text(encoding="utf-8")
    text = text.replace("from esper.kasmina.discovery import Wanted", "Wanted = object")
    text = text.replace(
        "from esper.kasmina.quiet import preserved_rng", "from contextlib import nullcontext as preserved_rng"
    )
    assert "import esper" not in text
    assert "from esper" not in text
    (folder / "own_hosts.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("own_hosts")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["own_hosts"]


def test_folded_models_load_and_train_where_esper_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = own_hosts(tmp_path)
    monkeypatch.setitem(sys.modules, "own_hosts", hosts)
    saved: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for name, host in hosts.ZOO.items():
        if name == "weight_normed":
            continue
        x = host.batch().x
        model = wrap(host.model(), host.slots, example=x)
        for slot in model.esper.graph():
            stir(graft(model, str(slot["slot"]), "mlp_adapter").kernel)
        alone = folded(model.eval(), host)
        saved[name] = (alone, x, model(x).detach())
        assert names_in(pickle.dumps(alone)) == set()
    file = tmp_path / "folded.pt"
    torch.save(saved, file)
    code = LOADING.format(folder=str(tmp_path), packages=sysconfig.get_path("purelib"), file=str(file))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(saved)


def test_a_grown_model_that_is_not_folded_names_esper() -> None:
    model = grown(ZOO["mlp"], "fc1", "mlp_adapter")
    assert any("kasmina" in name for name in names_in(pickle.dumps(model)))


def test_parametrized_hosts_are_folded_but_saved_by_their_state_alone() -> None:
    host = ZOO["weight_normed"]
    alone = folded(grown(host, "fc1", "mlp_adapter"), host)
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        torch.save(alone, io.BytesIO())
    again = folded(grown(host, "fc1", "mlp_adapter"), host)
    again.load_state_dict(alone.state_dict())
    batch: Batch = host.batch()
    assert torch.equal(output(again.eval(), batch), output(alone.eval(), batch))
