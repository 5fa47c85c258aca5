"""Growth comes early in a run of known length, or at a confirmed plateau, and never against a widening gap."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from esper.contracts.adaptation import SystemStatePacket
from esper.services.tamiyo.config import PlateauConfig
from esper.services.tamiyo.timing import Timing, when

MakePacket = Callable[..., SystemStatePacket]

CONFIG = PlateauConfig()
FLAT = [0.5, 0.501, 0.499, 0.5, 0.5, 0.501, 0.499, 0.5]
FALLING = [1.0 - 0.05 * n for n in range(8)]


def _when(packet: SystemStatePacket, room: int = 2, **settings: Any) -> Timing:
    return when(packet, room=room, config=PlateauConfig(**settings))


def _evidence(timing: Timing) -> dict[str, tuple[float, float | None]]:
    return {reason.name: (reason.value, reason.threshold) for reason in timing.evidence}


# -- early ---------------------------------------------------------------------------------------------------------------


def test_nothing_joins_before_the_start_up_is_over(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=1, steps=10_000))
    assert not timing.grow
    assert timing.why == "early: graft 1 of 2 is due at step 500, the next boundary is 200"
    assert _evidence(timing)["early_share"] == (0.02, 0.05)


def test_the_first_graft_joins_when_the_start_up_is_over(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=1, steps=4000))
    assert timing.grow
    assert timing.patient
    assert timing.why == "early, at 5% of the run"


@pytest.mark.parametrize(("room", "due"), [(1, [200]), (2, [200, 600]), (4, [200, 400, 600, 800])])
def test_grafts_are_spread_evenly_over_the_first_quarter(make_packet: MakePacket, room: int, due: list[int]) -> None:
    joined: list[int] = []
    for boundary in range(1, 40):
        packet = make_packet(boundary=boundary, steps=4000, grafts=tuple(joined))
        if len(joined) < room and _when(packet, room - len(joined)).grow:
            joined.append(packet.step + 100)
    assert joined == due


def test_more_grafts_than_boundaries_join_one_per_boundary(make_packet: MakePacket) -> None:
    packet = make_packet(boundary=3, steps=2000, grafts=(100, 200, 300))
    assert _when(packet, room=20).grow


def test_the_lead_counts_a_graft_is_early_when_it_joins_early(make_packet: MakePacket) -> None:
    late, in_time = (make_packet(boundary=14, steps=4000, lead=lead) for lead in (3, 2))
    assert not _when(late, room=1).grow
    assert _when(in_time, room=1).grow


def test_a_graft_that_slipped_beyond_the_first_quarter_may_still_join_but_waits_for_nothing(
    make_packet: MakePacket,
) -> None:
    timing = _when(make_packet(boundary=12, steps=4000), room=1)
    assert timing.grow
    assert not timing.patient


def test_after_the_latest_share_only_a_plateau_leads_to_growth(make_packet: MakePacket) -> None:
    assert not _when(make_packet(boundary=20, losses=FALLING, steps=4000)).grow
    assert _when(make_packet(boundary=20, losses=FLAT, steps=4000)).grow


def test_a_run_of_unknown_length_has_no_early(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=4, steps=None))
    assert not timing.grow
    assert timing.why == "4 of 8 boundaries that a plateau takes since the last graft"


# -- at a plateau --------------------------------------------------------------------------------------------------------


def test_a_flat_loss_is_a_plateau_with_its_numbers(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=20, losses=FLAT, steps=None))
    assert timing.grow
    assert timing.why == "plateau over 700 steps"
    fall, threshold = _evidence(timing)["held_out_fall"]
    assert threshold == pytest.approx(0.01 * 0.5, rel=0.01)
    assert fall < 0.001


def test_a_loss_that_still_falls_is_none_and_the_reason_says_by_how_much(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=20, losses=FALLING, steps=None))
    assert not timing.grow
    assert timing.why.startswith("the held-out loss still falls, by 0.35 ± ")
    assert _evidence(timing)["held_out_fall"] == (pytest.approx(0.35), pytest.approx(0.0065))


def test_only_boundaries_since_the_last_graft_confirm_a_plateau(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=20, losses=FLAT, steps=None, grafts=(1600,)))
    assert not timing.grow
    assert _evidence(timing)["boundaries"] == (4, 8)


def test_too_little_of_the_run_left_is_advice_not_to_grow(make_packet: MakePacket) -> None:
    timing = _when(make_packet(boundary=30, losses=FLAT, steps=4000))
    assert not timing.grow
    assert "22% of the run remain and a graft needs 35%: train on without growing" in timing.why
    assert _evidence(timing)["remaining_share"] == (pytest.approx(0.225), 0.35)


def test_one_plateau_brings_several_grafts_at_successive_boundaries(make_packet: MakePacket) -> None:
    joined: list[int] = []
    for boundary in range(10, 24):
        packet = make_packet(
            boundary=boundary, losses=[0.5] * 10 + [0.5] * (boundary - 10), steps=None, grafts=tuple(joined)
        )
        if _when(packet, room=9).grow:
            joined.append(packet.step + 100)
    assert joined[:4] == [1100, 1200, 1300, 1400]
    assert joined[4:] == [2300, 2400]


def test_grafts_made_by_hand_while_the_loss_falls_start_no_burst(make_packet: MakePacket) -> None:
    falling = [1.0 - 0.04 * n for n in range(20)]
    assert not _when(make_packet(boundary=20, losses=falling, steps=None, grafts=(2000,))).grow


def test_the_plateau_of_a_long_run_counts_also_while_it_is_early(make_packet: MakePacket) -> None:
    packet = make_packet(boundary=20, losses=FLAT, steps=1_000_000)
    assert _when(packet).grow
    assert _when(packet).why == "plateau over 700 steps"


# -- never ---------------------------------------------------------------------------------------------------------------

RISING = [0.50, 0.52, 0.54, 0.56, 0.58]


def test_a_widening_gap_forbids_growth_with_its_numbers(make_packet: MakePacket) -> None:
    for steps in (None, 4000):
        packet = make_packet(boundary=5, losses=RISING, train=[0.1] * 5, steps=steps)
        timing = _when(packet)
        assert not timing.grow
        assert timing.why.startswith(
            "growth will not help: training loss 0.1 is 17% of the held-out loss 0.58, which rose by 0.08"
        )
        assert _evidence(timing)["gap_ratio"] == (pytest.approx(0.1 / 0.58), 0.5)


@pytest.mark.parametrize(
    ("losses", "train"),
    [
        (RISING, [0.5] * 5),  # rising, but no gap
        ([0.5] * 5, [0.1] * 5),  # a gap that does not widen
        (RISING, None),  # no training loss was given
        (RISING[1:], [0.1] * 4),  # too few boundaries to call it rising
    ],
)
def test_a_gap_or_a_rise_alone_forbids_nothing(
    make_packet: MakePacket, losses: list[float], train: list[float] | None
) -> None:
    assert _when(make_packet(boundary=6, losses=losses, train=train, steps=4000), room=1).grow


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_forbids_growth(make_packet: MakePacket, last: float) -> None:
    timing = _when(make_packet(boundary=5, losses=[0.5, 0.5, 0.5, 0.5, last]))
    assert (timing.grow, timing.why) == (False, "the held-out loss is not finite")


def test_before_the_first_measurement_nothing_grows(make_packet: MakePacket) -> None:
    assert not _when(make_packet(boundary=1, losses=[])).grow


@pytest.mark.parametrize(
    "settings", [{"early_share": 0.5}, {"startup_share": 0.3}, {"plateau_boundaries": 2}, {"unheard_of": 1}]
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"rise in this order|greater than or equal to 3|not permitted"):
        PlateauConfig(**settings)  # type: ignore[arg-type]
