"""Whatever is built on the model hears of every change of its topology, inside the transaction."""

import pytest
from torch import nn

from esper.errors import GraftFailed
from esper.kasmina import topology
from esper.services.tolaria.snapshot import Subject
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO
from tests.laws.support import kernel_for
from tests.laws.training import COMBINATIONS, Training


class Mirror:
    """Notes how many grafts the model had whenever it was to follow."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.seen: list[int] = []

    def follow(self) -> None:
        self.seen.append(len(topology(self._model)))


def operated() -> tuple[Training, Mirror, Surgeon]:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    mirror = Mirror(training.model)
    plain = training.subject
    subject = Subject(plain.model, plain.optimizer, plain.schedule, plain.others, (mirror,))
    return training, mirror, Surgeon(subject, snapshots_held=2, tolerance=1e-6)


def graft(training: Training, surgeon: Surgeon, slot: str, *, key: str) -> None:
    data, kernel_id = kernel_for(training.model, slot, "mlp_adapter")
    surgeon.graft(Cut(slot, 0), data, kernel_id=kernel_id, key=key, seen=None)


def test_a_follower_hears_of_joins_culls_and_rollbacks() -> None:
    training, mirror, surgeon = operated()
    first, second = training.slots[:2]
    graft(training, surgeon, first, key="first")
    graft(training, surgeon, second, key="second")
    surgeon.cull(Cut(first, 0), key="first", put_back=False)
    surgeon.roll_back("second")
    assert mirror.seen == [1, 2, 1, 1]


def test_a_follower_hears_that_a_join_was_withdrawn() -> None:
    training, mirror, surgeon = operated()
    graft(training, surgeon, training.slots[0], key="first")
    with pytest.raises(GraftFailed):
        graft(training, surgeon, training.slots[0], key="again")
    assert mirror.seen == [1, 1]
