"""Law 1: a wrapped host computes, in train and eval, to the bit what it did, with its own state_dict keys."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from esper.kasmina import MorphableModel, placement_of, unwrap, wrap
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, PRECISE, gradients, output, same, wrapped

STEPS = 3
HALF = ("mlp", "resnet", "channels_last", "conv1d", "transformer", "torch_transformer")
CASES = [(name, dtype) for name in ZOO for dtype in PRECISE] + [(name, torch.bfloat16) for name in HALF]
EXAMPLE = pytest.mark.parametrize("known", [True, False], ids=["example", "first forward"])


def pair(host: ZooHost, dtype: torch.dtype, *, known: bool) -> tuple[nn.Module, nn.Module]:
    """Return a plain host and a wrapped one, equal to it."""
    plain = host.model(dtype=dtype)
    return plain, wrap(copy.deepcopy(plain), host.slots, example=host.batch(dtype=dtype).x if known else None)


@EXAMPLE
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_training_is_the_same_to_the_bit(name: str, dtype: torch.dtype, known: bool) -> None:
    host = ZOO[name]
    models = pair(host, dtype, known=known)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    for step in range(STEPS):
        losses, states = [], []
        for model, optimizer in zip(models, optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = host.loss(model, host.batch(seed=step, dtype=dtype))
            loss.backward()
            losses.append(float(loss.detach()))
            states.append((gradients(model), torch.get_rng_state()))
            optimizer.step()
        assert losses[0] == losses[1]
        assert same(states[0][0], states[1][0])
        assert torch.equal(states[0][1], states[1][1])
        assert same(models[0].state_dict(), models[1].state_dict())
        assert same(dict(models[0].named_buffers()), dict(models[1].named_buffers()))


@EXAMPLE
@pytest.mark.parametrize("gradient", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_evaluation_is_the_same_to_the_bit_from_the_first_forward_on(
    name: str, dtype: torch.dtype, gradient: bool, known: bool
) -> None:
    host = ZOO[name]
    plain, grown = pair(host, dtype, known=known)
    plain.eval()
    grown.eval()
    with torch.set_grad_enabled(gradient):
        for seed in range(2):
            batch = host.batch(seed=seed, dtype=dtype)
            assert torch.equal(output(plain, batch), output(grown, batch))
    assert same(plain.state_dict(), grown.state_dict())


@EXAMPLE
@EVERY_HOST
def test_a_wrapped_host_is_still_what_it_was(host: ZooHost, known: bool) -> None:
    plain, model = pair(host, torch.float32, known=known)
    assert isinstance(model, type(plain))
    assert isinstance(model, MorphableModel)
    assert repr(model) == repr(plain)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [type(module) for module in model.modules()][1:] == [type(module) for module in plain.modules()][1:]


@EVERY_HOST
def test_after_its_first_forward_a_wrapped_host_runs_nothing_but_its_own_code(host: ZooHost) -> None:
    model = wrap(host.model(), host.slots)
    assert not placement_of(model).ready
    model(host.batch().x)
    assert placement_of(model).ready
    assert type(model).__call__ is nn.Module.__call__
    assert type(model).forward is type(host.model()).forward
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@EVERY_HOST
def test_both_ways_of_learning_shapes_find_the_same_slots(host: ZooHost) -> None:
    watched = wrap(host.model(), host.slots)
    watched(host.batch().x)
    found = [placement_of(model) for model in (wrapped(host), watched)]
    sites = [[(place.name, place.site(), place.stage) for place in each.slots.values()] for each in found]
    assert sites[0] == sites[1]
    assert sites[0]
    assert found[0].refusals == found[1].refusals


@EXAMPLE
@EVERY_HOST
def test_a_deep_copy_is_wrapped_too_and_shares_nothing(host: ZooHost, known: bool) -> None:
    plain, model = pair(host, torch.float32, known=known)
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert torch.equal(output(twin, host.batch()), output(plain, host.batch()))
    own = set(twin.modules())
    assert placement_of(twin) is not placement_of(model)
    assert all(place.module in own for place in placement_of(twin).slots.values())
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert same(dict(plain.named_parameters()), dict(model.named_parameters()))


@pytest.mark.parametrize("host", [host for name, host in ZOO.items() if name != "weight_normed"], ids=lambda h: h.name)
def test_a_pickled_model_comes_back_wrapped(host: ZooHost) -> None:
    model = wrapped(host).eval()
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin) is type(model)
    assert torch.equal(output(twin, host.batch()), output(model, host.batch()))
    assert [place.site() for place in placement_of(twin).slots.values()] == [
        place.site() for place in placement_of(model).slots.values()
    ]


def test_what_torch_itself_does_not_pickle_says_so_as_before() -> None:
    for model in (ZOO["weight_normed"].model(), wrapped(ZOO["weight_normed"])):
        with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
            pickle.dumps(model)


@EVERY_HOST
def test_states_travel_between_plain_and_wrapped_hosts(host: ZooHost) -> None:
    plain, model = host.model(seed=1), wrapped(host, seed=2)
    file = io.BytesIO()
    torch.save(plain.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(output(model.eval(), host.batch()), output(plain.eval(), host.batch()))
    host.model(seed=3).load_state_dict(model.state_dict(), strict=True)


@EXAMPLE
@EVERY_HOST
def test_unwrapping_gives_the_host_back_as_it_was(host: ZooHost, known: bool) -> None:
    plain, model = pair(host, torch.float32, known=known)
    assert unwrap(model) is model
    assert type(model) is type(plain)
    assert not isinstance(model, MorphableModel)
    assert vars(model).keys() == vars(plain).keys()
    assert [type(module) for module in model.modules()][1:] == [type(module) for module in plain.modules()][1:]
    assert torch.equal(output(model.eval(), host.batch()), output(plain.eval(), host.batch()))
    wrap(model, host.slots)
