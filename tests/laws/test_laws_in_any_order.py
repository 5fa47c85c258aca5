"""All laws at once, whatever the order in which a training grows, blends, is culled, rolled back, saved and loaded."""

import pytest

from tests.laws.any_order import Setup, run, setups


@pytest.mark.slow
@pytest.mark.parametrize("setup", tuple(setups(compiled=False)), ids=str)
def test_the_laws_hold_in_any_order(setup: Setup) -> None:
    run(setup, examples=4, steps=10)
