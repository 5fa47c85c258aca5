"""Averaged weights of the trainer grow with the model, are measured, and are resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from esper.errors import ConfigError
from esper.kasmina import topology
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.trainer import Averaging, Checkpoints, TolariaTrainer
from esper.testing.controllers import GraftAt
from tests.unit.tolaria.trainer.support import config, data, held_out, host, loader, same, weights


def test_the_average_is_the_exponential_one_and_validations_measure_it(tmp_path: Path) -> None:
    model = host()
    before = weights(model)
    settings = config(tmp_path, every=1, max_steps=1, averaging=Averaging(decay=0.75), checkpoints=None)
    first = TolariaTrainer(settings).fit(model, loader(), held_out())
    assert first.average is not None
    assert same(weights(first.average), weights(model)), "the first update takes the weights themselves"
    assert not same(weights(model), before)

    one, two = host(), host()
    TolariaTrainer(replace(settings, max_steps=8, schedule="none", averaging=None)).fit(one, loader(), held_out())
    report = TolariaTrainer(replace(settings, max_steps=8, schedule="none")).fit(two, loader(), held_out())
    assert same(weights(one), weights(two)), "averaging changes nothing in the training"
    assert report.average is not None
    inputs, labels = data(24, seed=1).tensors
    with torch.no_grad():
        loss = nn.functional.cross_entropy(report.average.eval()(inputs), labels)
    assert report.validations[-1].values["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert not same(weights(report.average), weights(two))


def test_the_average_grows_and_is_resumed_to_the_bit(tmp_path: Path) -> None:
    settings = config(
        tmp_path, every=3, controller=GraftAt(1), attach={"late": "wait"}, averaging=Averaging(decay=0.9, every=2),
        checkpoints=Checkpoints(every_steps=1, keep_last=99, before_graft=False),
    )  # fmt: skip
    model, other = host(), host(seed=7)
    wanted = TolariaTrainer(settings).fit(model, loader(48), held_out())
    assert wanted.folder is not None
    manager = CheckpointManager(wanted.folder / "checkpoints", keep_last=99)
    path = manager.paths()[::-1][8]
    manager.close()
    report = TolariaTrainer(replace(settings, resume=path)).fit(other, loader(48), held_out())
    assert topology(model)
    assert report.average is not None
    assert wanted.average is not None
    assert same(weights(other), weights(model))
    assert same(weights(report.average), weights(wanted.average))
    assert report.validations == wanted.validations


def test_an_average_that_is_none_is_refused() -> None:
    for changes in ({"decay": 1.0}, {"decay": 0.0}):
        with pytest.raises(ConfigError, match="ESP-2700"):
            Averaging(**changes)
    with pytest.raises(ConfigError, match="ESP-2700"):
        Averaging(every=0)
