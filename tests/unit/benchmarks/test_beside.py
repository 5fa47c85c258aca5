"""A training that a forge slows down is told from one that it does not, and a forge that does nothing proves nothing."""

import pytest

from benchmarks import beside
from benchmarks.support.saturated import saturated


def answered(slower: float, waits: int) -> dict[str, bool]:
    """Return which targets are met where each step takes so much longer, on a machine whose own pace drifts."""
    alone = [(0.01 * drift, 0.01 * drift) for drift in (1.0, 1.5, 0.7)]
    times = {False: alone, True: [(wall * slower, cpu) for wall, cpu in alone]}
    return {target.metric: target.met for target in beside._answered(times, 20.0, waits).targets}


@pytest.mark.parametrize(("slower", "waits", "met"), [(1.02, 0, (True, True)), (1.05, 1, (False, False))])
def test_blocks_are_compared_in_pairs(slower: float, waits: int, met: tuple[bool, bool]) -> None:
    found = answered(slower, waits)
    assert (found["step_wall_beside_over_alone"], found["waits"]) == met


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_forge_that_is_held_makes_nothing_and_goes_on_where_it_was() -> None:
    import time

    with saturated(0) as forge:
        time.sleep(1.0)
        forge.kernels()
        time.sleep(2.0)
        assert forge.kernels() == 0
        forge.go_on()
        for _ in range(600):
            time.sleep(0.1)
            if forge.kernels():
                break
        else:
            pytest.fail("it did not go on")
    assert forge.process.returncode is not None
