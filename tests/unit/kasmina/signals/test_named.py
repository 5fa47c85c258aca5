"""Signals by name: each reads any host, leaves no trace, and is refused where it cannot be had."""

import pytest
import torch

from esper.errors import ConfigError
from esper.kasmina import SIGNALS, check_signal, placement_of, signal_named
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, wrapped

EVERY_SIGNAL = pytest.mark.parametrize("name", SIGNALS)


def trained(host: ZooHost, name: str | None) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the weights after three steps, the last of them watched, and the scores."""
    model = wrapped(host)
    torch.manual_seed(3)  # some hosts drop out
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    signal = None if name is None else signal_named(name, model, optimizer)
    for step in range(3):
        if step == 2 and signal is not None:
            signal.arm()
        optimizer.zero_grad()
        host.loss(model, host.batch()).backward()
        optimizer.step()
    if signal is not None:
        signal.disarm()
    return model.state_dict(), {} if signal is None else signal.read()


@EVERY_SIGNAL
@EVERY_HOST
def test_every_signal_scores_every_slot_and_leaves_training_as_it_is_to_the_bit(host: ZooHost, name: str) -> None:
    plain, _ = trained(host, None)
    drawn = torch.get_rng_state()
    watched, scores = trained(host, name)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert torch.equal(drawn, torch.get_rng_state())
    assert scores.keys() == placement_of(wrapped(host)).slots.keys()
    assert all(0.0 <= score < float("inf") for score in scores.values())
    assert any(score > 0 for score in scores.values())


@EVERY_SIGNAL
def test_a_signal_leaves_no_hook(name: str) -> None:
    host = ZOO["mlp"]
    model = wrapped(host)
    optimizer = torch.optim.AdamW(model.parameters())
    signal = signal_named(name, model, optimizer)
    signal.arm()
    assert len(optimizer._optimizer_step_pre_hooks) + any(m._forward_hooks for m in model.modules()) == 1
    assert signal.in_forward == any(m._forward_hooks for m in model.modules())
    signal.disarm()
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(m._forward_hooks for m in model.modules())


@EVERY_SIGNAL
def test_what_was_seen_of_half_a_step_goes_on_in_another_process(name: str) -> None:
    host = ZOO["residual_mlp"]
    scores = []
    for broken in (False, True):
        model = wrapped(host)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            host.loss(model, host.batch()).backward()
            optimizer.step()
        signal = signal_named(name, model, optimizer)
        signal.arm()
        host.loss(model, host.batch()).backward()
        if broken:
            signal.disarm()
            state, signal = signal.state_dict(), signal_named(name, model, optimizer)
            signal.load_state_dict(state)
            signal.arm()
        host.loss(model, host.batch(seed=1)).backward()
        optimizer.step()
        signal.disarm()
        scores.append(signal.read())
    assert scores[0] == scores[1]


def test_a_name_that_is_none_is_refused_with_the_nearest() -> None:
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ConfigError, match=r'ESP-2129.*did you mean "bottleneck"'):
        check_signal("bottelneck", optimizer, probed=False)


def test_what_training_does_not_give_is_refused() -> None:
    weight = [torch.zeros(1, requires_grad=True)]
    with pytest.raises(ConfigError, match="ESP-2136"):
        check_signal("gradient_norm", torch.optim.AdamW(weight), probed=True)
    with pytest.raises(ConfigError, match="ESP-2137"):
        check_signal("gradient_snr", torch.optim.SGD(weight), probed=False)
    check_signal("bottleneck", torch.optim.SGD(weight), probed=True)
    check_signal("gradient_snr", torch.optim.Adam(weight), probed=False)
