"""Arms are paired, schedules span their own steps, budgets are kept, and tuning never reads the test part."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from esper.datasets import characters
from esper.demos import training
from esper.demos.arms import Arm
from esper.demos.hosts import make_host
from esper.demos.messages import Job, Message, Place, Progress, Score, Started
from esper.demos.scoring import Part, score
from esper.demos.training import batches, clip, graft_from_the_start, num_params, peak_share, train
from esper.errors import NotFound
from esper.kasmina import topology, unwrap, wrap

PYDOC = len(characters().alphabet) * 33 + 64 * 16 + 2 * (12 * 16**2 + 10 * 16) + 32
"""Two embeddings and a head, two blocks, a norm; the alphabet is that of this Python's help pages."""
BOTH = (Place("block1", 0, "gated_mlp"), Place("block2", 0, "gated_mlp"))


def job(arm: Arm, **changes: object) -> Job:
    given = {"task": "spirals", "arm": arm, "seed": 1, "rate": 0.01, "root": "nowhere", "quick": True}
    return Job(**{**given, **changes})  # type: ignore[arg-type]


def test_equal_seeds_give_equal_hosts_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (make_host("digits", seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


@pytest.mark.parametrize(("task", "params"), [("spirals", 114), ("digits", 656), ("pydoc", PYDOC)])
def test_hosts_are_as_small_as_the_documentation_says(task: str, params: int) -> None:
    assert num_params(make_host(task, seed=0)) == params


def test_every_pass_over_the_data_has_every_example_at_most_once() -> None:
    stream = batches(10, 3, seed=0)
    for _ in range(4):
        rows = np.concatenate([next(stream).numpy() for _ in range(3)])
        assert len(set(rows.tolist())) == 9


def test_a_longer_training_begins_with_the_batches_of_a_shorter_one() -> None:
    short = [rows.tolist() for rows in itertools.islice(batches(100, 8, seed=5), 20)]
    long = [rows.tolist() for rows in itertools.islice(batches(100, 8, seed=5), 200)]
    assert long[:20] == short
    assert [rows.tolist() for rows in itertools.islice(batches(100, 8, seed=6), 20)] != short


def test_every_schedule_warms_up_reaches_its_peak_and_ends_near_zero_within_its_own_steps() -> None:
    for steps in (100, 2000):
        shares = [peak_share(step, steps) for step in range(steps)]
        warmup = 3 * steps // 10
        assert shares[0] == pytest.approx(1 / warmup)
        assert shares[warmup - 1] == shares[warmup] == max(shares) == 1.0
        assert shares[(warmup + steps) // 2] == pytest.approx(0.5)
        assert 0 < shares[-1] < 0.001


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_clips_them(largest: float) -> None:
    ours, theirs = make_host("digits", seed=0), make_host("digits", seed=0)
    for model in (ours, theirs):
        model(torch.ones(4, 1, 8, 8)).square().sum().backward()
    clip(torch.optim.SGD(ours.parameters(), lr=1.0), largest)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), largest)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, reference.grad)


def test_a_static_network_of_the_final_size_computes_what_the_host_does_at_birth_and_has_its_grafts() -> None:
    host, final = make_host("spirals", seed=2), make_host("spirals", seed=2)
    points = torch.linspace(-1, 1, 20).reshape(10, 2)
    wrap(final, slots=["block1", "block2"], example=points)
    graft_from_the_start(final, BOTH)
    assert torch.equal(host(points), final(points))
    assert num_params(final) == 114 + 2 * 1272
    assert [(entry.slot, entry.blueprint) for entry in topology(final)] == [
        ("block1", "gated_mlp"),
        ("block2", "gated_mlp"),
    ]
    unwrap(final)
    assert all(torch.equal(host.state_dict()[name], value) for name, value in final.state_dict().items())


def test_steps_follow_from_flops_and_are_never_more_than_these_pay_for() -> None:
    per_step = 128 * (2 * 192 + 160)
    done = train(job(Arm.STATIC_SMALL_EQUAL_FLOPS, flops=10 * per_step + per_step // 2), lambda message: None)
    assert (done.steps, done.train_flops) == (10, 10 * per_step)


def test_equal_jobs_end_equal_and_the_test_part_is_read_when_it_is_asked_for() -> None:
    first, again = (train(job(Arm.STATIC_SMALL), lambda message: None) for _ in range(2))
    assert first == again
    assert first.test is not None


def test_tuning_never_reads_the_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(model: nn.Module, part: Part) -> Score:
        seen.append(len(part.labels))
        return score(model, part)

    monkeypatch.setattr(training, "score", noted)
    done = train(job(Arm.STATIC_SMALL, read_test=False), lambda message: None)
    assert done.test is None
    assert seen == [300]


def test_a_training_says_how_long_it_will_be_and_how_far_it_is() -> None:
    said: list[Message] = []
    train(job(Arm.STATIC_FINAL, places=BOTH), said.append)
    assert said[0] == Started(Arm.STATIC_FINAL, 1, 240, 2658)
    assert said[-1] == Progress(Arm.STATIC_FINAL, 1, 240)
    assert [message.step for message in said[1:] if isinstance(message, Progress)] == list(range(4, 241, 4))


def test_an_unknown_task_is_not_trained() -> None:
    with pytest.raises(NotFound, match="Did you mean spirals"):
        train(job(Arm.STATIC_SMALL, task="spiral"), lambda message: None)
