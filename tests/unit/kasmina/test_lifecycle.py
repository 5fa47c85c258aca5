"""The lifecycle of a seed: no illegal edge is reachable, every state is."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from esper.errors import Conflict, IllegalTransition
from esper.kasmina import Seed, SeedState
from esper.kasmina.lifecycle import TRANSITIONS

EDGES = """
dormant germinated
germinated loaded
germinated cancelled
loaded training
loaded blending
loaded cancelled
training blending
training culled
training cancelled
blending holding
blending culled
blending rolled_back
holding evaluating
holding culled
holding rolled_back
evaluating fossilized
evaluating culled
evaluating rolled_back
fossilized evaluating
fossilized culled
fossilized rolled_back
culled embargoed
cancelled embargoed
embargoed dormant
rolled_back locked
locked dormant
"""
"""Every edge, written down a second time."""
LEGAL = {(SeedState(a), SeedState(b)) for a, b in (line.split() for line in EDGES.strip().splitlines())}


class Life(RuleBasedStateMachine):
    """Asks a seed for any state at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = Seed("layer1", 0)
        self.entered = [SeedState.DORMANT]
        self.step = 0

    @rule(to=st.sampled_from(SeedState), steps=st.integers(0, 100))
    def ask(self, to: SeedState, steps: int) -> None:
        self.step += steps
        before = self.seed.to_dict()
        if (self.entered[-1], to) in LEGAL:
            self.seed.move(to, step=self.step)
            self.entered.append(to)
            assert self.seed.history[-1] == (to.value, self.step)
        else:
            with pytest.raises(IllegalTransition) as refused:
                self.seed.move(to, step=self.step)
            assert self.seed.to_dict() == before
            assert all(state.value in refused.value.why for state in SeedState if (self.entered[-1], state) in LEGAL)

    @rule()
    def save_and_load(self) -> None:
        loaded = Seed.from_dict(self.seed.to_dict())
        assert loaded == self.seed
        self.seed = loaded

    @invariant()
    def history_is_what_happened(self) -> None:
        assert self.seed.state is self.entered[-1]
        assert [state for state, _ in self.seed.history] == [state.value for state in self.entered[1:]]
        steps = [step for _, step in self.seed.history]
        assert steps == sorted(steps)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_the_table_has_these_edges_and_no_others() -> None:
    assert {(a, b) for a, targets in TRANSITIONS.items() for b in targets} == LEGAL
    assert TRANSITIONS.keys() == set(SeedState)


def reachable(start: SeedState, *, without: frozenset[SeedState] = frozenset()) -> set[SeedState]:
    found, front = {start}, [start]
    while front:
        for to in TRANSITIONS[front.pop()] - found - without:
            found.add(to)
            front.append(to)
    return found


def test_every_state_is_reachable_and_none_is_a_dead_end() -> None:
    assert reachable(SeedState.DORMANT) == set(SeedState)
    assert all(SeedState.DORMANT in reachable(state) for state in SeedState)


def test_nothing_is_kept_without_an_evaluation_and_nothing_is_used_again_without_a_rest() -> None:
    assert SeedState.FOSSILIZED not in reachable(SeedState.DORMANT, without=frozenset({SeedState.EVALUATING}))
    resting = frozenset({SeedState.EMBARGOED, SeedState.LOCKED})
    assert SeedState.DORMANT not in reachable(SeedState.BLENDING, without=resting)


def test_a_refused_edge_is_a_conflict_that_names_what_is_possible() -> None:
    with pytest.raises(
        Conflict, match="seed 2 of layer3 cannot go from dormant to blending: from dormant it may go to"
    ):
        Seed("layer3", 2).move(SeedState.BLENDING, step=7)
