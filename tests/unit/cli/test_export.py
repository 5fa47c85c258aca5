"""``esper export`` on a saved model, from the shell."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import esper
from esper.errors import ConfigError, NotFound
from esper.exporting.arguments import base_named, read_example, saved_model
from esper.testing.zoo import ZOO
from tests.laws.support import graft, wrapped

BASES = """
from itertools import count
from esper.testing.zoo import ZOO
make = ZOO["mlp"].model
class Other(type(make())):
    calls = count()
    def forward(self, x):
        return super().forward(x) + next(self.calls)
plain = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a grown model, and with the file that makes its host."""
    model = wrapped(ZOO["mlp"])
    newborn = graft(model, "fc1", "gated_mlp")
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter.add_(0.1)
    esper.save_pretrained(model, tmp_path / "saved")
    (tmp_path / "bases.py").write_text(BASES, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "esper.cli", "export", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


SAVED = ("saved", "--base", "bases:make", "-o", "out")


def test_a_saved_model_is_exported_and_verified(folder: Path) -> None:
    done = run(folder, *SAVED, "--format", "safetensors", "--example", "6,5", "--verify", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["verified"]
    assert report["difference"] <= 1e-5
    assert report["files"] == [str(Path("out") / "model.safetensors")]
    assert (folder / "out" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "onnx", "py"])
def test_every_format_is_there_from_the_shell(format: str, folder: Path) -> None:
    done = run(folder, *SAVED, "--format", format, "--example", "6,5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "batch: any" in done.stdout
    assert "largest difference" in done.stdout
    assert {path.suffix for path in (folder / "out").iterdir()} >= {f".{format}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("saved", "--base", "bases:make", "--format", "safetensors", "-o", "out"), 2, "ESP-2621"),
        (("saved", "--base", "bases:make", "--format", "onxx", "-o", "out", "--example", "6,5"), 2, "ESP-2620"),
        (("saved", "--base", "bases:make", "--format", "pt2", "-o", "out", "--example", "6,4"), 2, "ESP-2602"),
        (("nowhere", "--base", "bases:make", "--format", "pt2", "-o", "out", "--example", "6,5"), 3, "ESP-5112"),
        (("saved", "--base", "bases:none", "--format", "pt2", "-o", "out", "--example", "6,5"), 3, "ESP-5111"),
        (("saved", "--base", "bases:Other", "--format", "safetensors", "-o", "out", "--example", "6,5"), 4, "ESP-7410"),
        (("saved", "--format", "pt2", "-o", "out"), 2, "--base"),
    ],
)
def test_mistakes_end_with_a_sentence_and_the_code_that_fits(
    arguments: tuple[str, ...], code: int, says: str, folder: Path
) -> None:
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


# -- arguments -----------------------------------------------------------------------------------------------------------


def test_an_example_is_a_shape_with_a_type() -> None:
    image, ids, flags = read_example("2,3,4 ; 2x5:int64:7; 2:bool")  # type: ignore[misc]
    assert (image.shape, image.dtype) == ((2, 3, 4), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 5), torch.int64)
    assert ids.min() >= 0
    assert ids.max() < 7
    assert flags.dtype is torch.bool
    again = read_example("2,3,4")
    assert isinstance(again, tuple)
    assert torch.equal(again[0], image)


@pytest.mark.parametrize("text", ["", "2,a", "2,3:floot", "2,3:int64", "2,3:int64:0", "-1,3", "model.pt"])
def test_what_is_no_example_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ESP-2627"):
        read_example(text)


def test_an_example_is_read_from_a_file_by_name_or_place(tmp_path: Path) -> None:
    x, mask = torch.randn(2, 3), torch.ones(2)
    save_file({"x": x, "mask": mask}, tmp_path / "a.safetensors")
    named = read_example(str(tmp_path / "a.safetensors"))
    assert isinstance(named, dict)
    assert torch.equal(named["x"], x)
    np.savez(tmp_path / "a.npz", **{"1": mask.numpy(), "0": x.numpy()})
    placed = read_example(str(tmp_path / "a.npz"))
    assert isinstance(placed, tuple)
    assert [type(each) for each in placed] == [Tensor, Tensor]
    assert torch.equal(placed[0], x)
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"ESP-2627.*cannot be read"):
        read_example(str(tmp_path / "b.npz"))
    with pytest.raises(NotFound, match="ESP-5113"):
        read_example(str(tmp_path / "c.npz"))


@pytest.mark.parametrize("name", ["bases", ":make", "bases:", "torch:__version__"])
def test_what_makes_no_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="ESP-2626"):
        base_named(name)


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    for name in ("nonsense_module:make", "torch:nonsense"):
        with pytest.raises(NotFound, match="ESP-5111"):
            base_named(name)
    with pytest.raises(NotFound, match="ESP-5112"):
        saved_model(str(tmp_path))
