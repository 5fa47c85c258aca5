"""The job on which growing libraries are compared is the same for each, and its rules are kept."""

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gromo
from benchmarks.support.mnist1d_mlp import NARROW, WIDE, Job, lines_of, mlp, num_params
from benchmarks.support.with_esper import train_alone, train_with_esper
from esper.errors import ConfigError
from esper.kasmina import topology


def counted(first: int) -> int:
    """Say something

    over several lines.
    """
    # a comment
    return (
        first
        + 1
    )  # fmt: skip


def test_only_lines_of_code_are_counted() -> None:
    assert lines_of(counted) == 5


def test_equal_seeds_give_equal_data_batches_and_weights() -> None:
    one, other = (Job.drawn(seed=3, steps=5, rate=0.01) for _ in range(2))
    for first, second in islice(zip(one.batches(), other.batches(), strict=True), 5):
        assert torch.equal(first.x, second.x)
        assert torch.equal(first.y, second.y)
    weights = [mlp(NARROW, 3).state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(list(one.batches())) == 5


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    job = Job.drawn(seed=0, steps=200, rate=0.01)
    rates = [job.rate_at(step) for step in range(201)]
    assert max(rates) == pytest.approx(0.01, rel=0.01)
    assert rates.index(max(rates)) == 9
    assert rates[200] == 0.0


def test_esper_grows_within_what_the_wide_network_has_more(tmp_path: Path) -> None:
    job = Job.drawn(seed=0, steps=40, rate=0.01)
    grown, narrow = train_with_esper(job, tmp_path), train_alone(job, NARROW)
    assert num_params(narrow) < num_params(grown) <= num_params(mlp(WIDE, 0))
    assert [graft.blueprint for graft in topology(grown)][:1] == ["wider_mlp"]


def test_the_rate_that_learns_is_chosen_and_edges_are_passed() -> None:
    tried: list[float] = []

    def train(job: Job) -> nn.Module:
        tried.append(job.rate)
        model = mlp(NARROW, 0)
        nn.init.zeros_(model[-1].weight)
        # Right on as many classes as the rate is large.
        right = {0.003: 1, 0.01: 2, 0.03: 3, 0.09: 4, 0.27: 2}[round(job.rate, 4)]
        return _Says(job, right)

    assert gromo.tuned(gromo.Arm(train, 0), 1, 1) == pytest.approx(0.09)
    assert sorted(round(rate, 4) for rate in tried) == [0.003, 0.01, 0.03, 0.09, 0.27]


class _Says(nn.Module):
    """Knows the first few classes."""

    def __init__(self, job: Job, right: int) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(job.validation.y, 10) * (job.validation.y < right)[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = torch.zeros(len(x), 10)
        wrong[:, 9] = 0.5
        return self.logits + wrong


def test_without_gromo_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gromo", None)
    monkeypatch.delitem(sys.modules, "benchmarks.support.with_gromo", raising=False)
    with pytest.raises(ConfigError, match=r"gromo==0\.1\.0"):
        gromo.arms(tmp_path)
