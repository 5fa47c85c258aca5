"""What is exported computes what the model did, and a file that does not is never left in place or passed."""

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

import esper
from esper.errors import ConfigError, NotFound, Rejected
from esper.exporting import export, verify_export
from esper.exporting.formats import FORMATS, OPSET
from esper.exporting.inputs import Inputs, variants
from esper.exporting.tracing import constructor
from esper.kasmina import fold
from esper.kasmina.folding.fold import difference
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import graft, wrapped

QUICK = {("resnet", "py"), ("tied_language_model", "pt2"), ("mlp", "onnx")}
OPERATORS = ("torch_transformer",)
CASES = [
    pytest.param(name, format, marks=() if format == "safetensors" or (name, format) in QUICK else pytest.mark.slow)
    for format in FORMATS
    for name in ZOO
]


@contextmanager
def padding_may_be_warned_of() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="encoder computes positions")
        yield


def grown(host: ZooHost) -> nn.Module:
    """Return a model that has grown and learned something in every slot."""
    model = wrapped(host)
    generator = torch.Generator().manual_seed(1)
    for slot in model.esper.graph():
        mixing = "gated_mlp" if slot["layout"] == "features" else "self_attention"
        newborn = graft(model, str(slot["slot"]), mixing)
        with torch.no_grad():
            for parameter in newborn.parameters.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("name", "format"), CASES)
def test_every_host_is_exported_in_every_format_and_verified(name: str, format: str, tmp_path: Path) -> None:
    host = ZOO[name]
    model = grown(host)
    keys, training = list(model.state_dict()), model.training
    before = torch.get_rng_state()
    with padding_may_be_warned_of():
        report = export(model, tmp_path / "out", format=format, example=host.batch().x)
    assert torch.equal(torch.get_rng_state(), before)
    assert (list(model.state_dict()), model.training) == (keys, training)
    assert report.difference is not None
    assert report.difference <= 1e-5
    assert {"example", "large", "zeros", "batch of 1", f"batch of {host.examples + 1}"} <= {
        c.inputs for c in report.checks
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FORMATS[format].files)
    assert all(Path(file).is_file() for file in report.files)
    assert report.to_json() == json.loads(json.dumps(report.to_json()))
    if format == "py":
        assert ("operator by operator" in report.notes[0]) == (name in OPERATORS)
    if format == "onnx":
        assert f"opset {OPSET}" in report.notes


# -- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", pytest.param("py", marks=pytest.mark.slow)])
def test_a_weight_that_was_changed_since_is_noticed(format: str, tmp_path: Path) -> None:
    host = ZOO["mlp"]
    model, x = grown(host), host.batch().x
    export(model, tmp_path, format=format, example=x, verify=False)
    assert len(verify_export(model, tmp_path, format=format, example=x)) >= 9 or format == "py"
    state = load_file(tmp_path / "model.safetensors")
    state["fc1.grafts.0.linear1.weight"][0, 0] += 0.01
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(Rejected, match=rf"ESP-7421: the {format} files compute something else.*differ by"):
        verify_export(model, tmp_path, format=format, example=x)


def test_files_that_are_damaged_or_missing_are_refused(tmp_path: Path) -> None:
    host = ZOO["mlp"]
    model, x = grown(host), host.batch().x
    with pytest.raises(NotFound, match=r"ESP-5110: no model\.safetensors in"):
        verify_export(model, tmp_path, format="safetensors", example=x)
    export(model, tmp_path, format="safetensors", example=x)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(Rejected, match="ESP-7422"):
        verify_export(model, tmp_path, format="safetensors", example=x)
    (tmp_path / "model.pt2").write_bytes(b"no archive")
    with pytest.raises(Rejected, match="ESP-7420: the pt2 files do not run"):
        verify_export(model, tmp_path, format="pt2", example=x)


@pytest.mark.slow
def test_source_that_does_not_run_is_refused_with_its_last_words(tmp_path: Path) -> None:
    host = ZOO["mlp"]
    model, x = grown(host), host.batch().x
    export(model, tmp_path, format="py", example=x, verify=False)
    text = (tmp_path / "model.py").read_text(encoding="utf-8")
    (tmp_path / "model.py").write_text(text.replace("torch.tanh", "torch.nonsense"), encoding="utf-8")
    with pytest.raises(Rejected, match=r"ESP-7423: model\.py does not run: AttributeError.*nonsense"):
        verify_export(model, tmp_path, format="py", example=x)


class Counts(nn.Module):
    """Computes something else each time."""

    calls = count()

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + next(self.calls)


def test_what_fails_its_check_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="ESP-7421"):
        export(Counts(), tmp_path, format="safetensors", example=torch.randn(3, 4))
    assert list(tmp_path.iterdir()) == []


class OfOneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).reshape(3, 4) if len(x) == 3 else self.fc(x) * 2


def test_a_model_that_depends_on_the_size_of_the_batch_is_exported_for_that_size_or_not_at_all(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ConfigError, match=r"ESP-2624: the model cannot be exported.*fixed_batch"):
        export(OfOneSize(), tmp_path, format="pt2", example=x)
    report = export(OfOneSize(), tmp_path, format="pt2", example=x, fixed_batch=True)
    assert report.batch == "3"
    assert not [check for check in report.checks if "batch" in check.inputs]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize("format", ["pt2", "py"])
def test_a_model_whose_code_depends_on_numbers_is_refused(format: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ESP-2624.*torch\.export says"):
        export(Branches(), tmp_path, format=format, example=torch.randn(3, 4))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_answered_before_anything_is_written(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match=r"ESP-2620.*did you mean onnx\?"):
        export(model, tmp_path / "a", format="onxx")
    with pytest.raises(ConfigError, match="ESP-2621: pt2 needs an example"):
        export(model, tmp_path / "a", format="pt2", verify=False)
    with pytest.raises(ConfigError, match="ESP-2621: safetensors needs an example: the model is run on it"):
        export(model, tmp_path / "a", format="safetensors")
    with pytest.raises(ConfigError, match="ESP-2623"):
        export(model, tmp_path / "a", format="pt2", example=torch.tensor(1.0))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="ESP-2602: the model does not run on the"):
        export(model, tmp_path / "a", format="safetensors", example=torch.randn(3, 5))
    assert export(model, tmp_path / "a", format="safetensors", verify=False).difference is None


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "import torch, esper\n"
        "esper.export(torch.nn.Linear(2, 2), '.', format='onnx', example=torch.zeros(3, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ESP-2622: the format onnx needs onnxscript" in done.stderr
    assert 'pip install "esper-morphogenesis[onnx]"' in done.stderr


# -- source --------------------------------------------------------------------------------------------------------------


def imported(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_source_names_what_it_needs_keeps_the_names_of_the_folded_model_and_trains(tmp_path: Path) -> None:
    host = ZOO["tied_language_model"]
    model = grown(host)
    report = export(model, tmp_path, format="py", example=host.batch().x, verify=False)
    assert "it can be evaluated and trained" in report.notes[0]
    text = (tmp_path / "model.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE)) == {
        "pathlib",
        "torch",
        "safetensors.torch",
    }
    alone, source = fold(model), imported(tmp_path).load()
    assert sorted(source.state_dict()) == sorted(alone.state_dict())
    assert source.head.weight is source.embedding.weight
    assert "head.weight" not in load_file(tmp_path / "model.safetensors")
    for each in (source, alone):
        torch.manual_seed(0)
        host.loss(each.train(), host.batch()).backward()
    assert difference(source.embedding.weight.grad, alone.embedding.weight.grad) <= 1e-6
    assert all(p.grad is not None for p in source.parameters())


class Functional(nn.Module):
    """Drops by a function, which asks for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.fc(x), 0.5, self.training)


class Optional(nn.Module):
    """Has an argument that the example does not give, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        y = self.fc(x)
        return {"y": y if mask is None else y * mask, "x": x}


def test_source_of_a_model_whose_code_depends_on_its_mode_says_so(tmp_path: Path) -> None:
    report = export(Functional(), tmp_path, format="py", example=torch.randn(3, 4), verify=False)
    assert "that of eval mode, as the model computes something else when it trains" in report.notes[0]
    x = torch.randn(3, 4)
    source = imported(tmp_path).load()
    assert torch.equal(source.train()(x), source.eval()(x))


def test_source_of_a_model_with_more_arguments_than_its_example_is_written_by_its_operators(tmp_path: Path) -> None:
    model, x = Optional(), torch.randn(3, 4)
    report = export(model, tmp_path, format="py", example=x, verify=False)
    assert "operator by operator" in report.notes[0]
    found = imported(tmp_path).load()(x)
    assert list(found) == ["y", "x"]
    assert difference(found, model(x)) <= 1e-6


@pytest.mark.parametrize("format", ["pt2", pytest.param("py", marks=pytest.mark.slow)])
def test_arguments_by_name_are_exported(format: str, tmp_path: Path) -> None:
    model, x = Optional(), torch.randn(3, 4)
    report = export(model, tmp_path, format=format, example={"x": x, "mask": torch.rand(3, 1)})
    assert report.difference is not None
    assert report.difference <= 1e-6


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, parts: list[Tensor]) -> Tensor:
        return self.fc(parts[0] + parts[1])


def test_containers_of_tensors_go_into_a_program_and_not_into_source(tmp_path: Path) -> None:
    example = ([torch.randn(3, 4), torch.randn(3, 4)],)
    assert export(Listed(), tmp_path, format="pt2", example=example).difference is not None
    with pytest.raises(ConfigError, match=r"ESP-2625.*takes a list.*pt2"):
        export(Listed(), tmp_path, format="py", example=example)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.GRU(3, 4, batch_first=True),
     nn.BatchNorm1d(4, momentum=None), nn.Embedding(5, 3, padding_idx=0), nn.GELU("tanh"), nn.Dropout(0.25), nn.RMSNorm(4)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_a_layer_that_its_text_makes_again_is_written_as_one(layer: nn.Module) -> None:
    text = constructor(layer)
    assert text is not None
    again = eval(text, {"nn": nn})
    again.load_state_dict(layer.state_dict())
    assert repr(again) == repr(layer)


def test_a_layer_that_its_text_does_not_make_again_is_not() -> None:
    hooked = nn.Linear(3, 4)
    hooked.register_forward_hook(lambda module, args, out: out * 2)

    class Own(nn.Linear):
        pass

    for layer in (
        hooked,
        Own(3, 4),
        nn.MultiheadAttention(4, 2),
        nn.Sequential(),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    ):
        assert constructor(layer) is None


# -- weights -------------------------------------------------------------------------------------------------------------


def test_weights_are_read_back_into_a_folded_model(tmp_path: Path) -> None:
    host = ZOO["tied_language_model"]
    model = grown(host)
    esper.export(model, tmp_path, format="safetensors", example=host.batch().x)
    other = grown(host)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    alone = fold(other)
    load_model(alone, tmp_path / "model.safetensors")
    assert difference(model.eval()(host.batch().x), alone.eval()(host.batch().x)) <= 1e-6


# -- what it is checked on -----------------------------------------------------------------------------------------------


def test_variants_keep_types_shapes_and_the_range_of_whole_numbers() -> None:
    ids = torch.tensor([[3, 7], [5, 3]])
    inputs = Inputs.of((ids, torch.randn(2, 3, dtype=torch.float64), torch.tensor([True, False]), 4))
    found = dict(variants(inputs, any_batch=True))
    assert list(found) == [
        "example",
        "random 1",
        "random 2",
        "random 3",
        "zeros",
        "large",
        "batch of 1",
        "batch of 3",
        "batch of 5",
    ]
    for name, each in found.items():
        assert [type(value) for value in each.args] == [Tensor, Tensor, Tensor, int]
        assert set(each.args[0].flatten().tolist()) <= {3, 5, 7}, name
        assert [t.dtype for t in each.tensors()] == [torch.int64, torch.float64, torch.bool]
        assert each.args[3] == 4
    assert found["batch of 5"].args[0].tolist() == [[3, 7], [5, 3], [3, 7], [5, 3], [3, 7]]
    assert not found["zeros"].args[1].any()
    assert torch.equal(found["large"].args[1], inputs.args[1] * 100)
    assert not torch.equal(found["random 1"].args[1], found["random 2"].args[1])
