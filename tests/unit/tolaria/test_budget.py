"""Budgets are read as users write them, and a mistake is answered with what was meant."""

import pytest

from esper.errors import ConfigError
from esper.services.tolaria.budget import Budget


@pytest.mark.parametrize(
    ("given", "params"), [("+30%", 300), ("x4", 3000), ("+7.5 %", 75), ("x1", 0), (Budget(params=5), 5)]
)
def test_a_budget_says_how_many_parameters_may_be_added(given: str | Budget, params: int) -> None:
    assert Budget.of(given, host_params=1000).params == params


def test_a_bare_number_is_answered_with_the_ratio_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r'ESP-2104: budget "30" is not a ratio\. Did you mean "\+30%"\?'):
        Budget.of("30", host_params=1000)


@pytest.mark.parametrize("given", ["", "x0.5", "-3%", "lots"])
def test_what_is_not_a_budget_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="ESP-2104"):
        Budget.of(given, host_params=1000)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        Budget(flops=-1)
