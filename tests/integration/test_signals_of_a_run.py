"""A run goes by the signal that it was told: its scores reach the controller under their name."""

from pathlib import Path

import pytest
import torch

import esper
from esper.contracts.adaptation import AdaptationDecision, SystemStatePacket
from esper.kasmina import SIGNALS, placement_of
from esper.testing.zoo import ZOO
from tests.laws.training import Training


class Listening:
    """A controller that keeps what it hears."""

    def __init__(self) -> None:
        self.packets: list[SystemStatePacket] = []

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Keep the packet and ask for nothing."""
        self.packets.append(packet)
        return AdaptationDecision(topology_version=packet.topology_version)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_scores_of_a_signal_reach_the_controller_under_its_name(name: str, tmp_path: Path) -> None:
    heard = Listening()
    training = Training(ZOO["residual_mlp"], ("adamw", "lambda"))
    with training.attach(tmp_path, controller=heard, signal=name, late="wait") as growth:
        training.train(8, growth)
    packet = heard.packets[-1]
    assert packet.signal == name
    scores = {candidate.slot: candidate.score for candidate in packet.candidates}
    assert scores.keys() == placement_of(training.model).slots.keys()
    assert all(score is not None and score >= 0 for score in scores.values())
    assert any(score for score in scores.values())
    health = {slot.slot: slot.metrics["grad_to_weight"] for slot in packet.slots}
    assert (scores == pytest.approx(health, rel=1e-6)) == (name == "gradient_norm")


def test_a_probe_of_the_users_own_is_scored_by_the_signal_too(tmp_path: Path) -> None:
    heard, host = Listening(), ZOO["residual_mlp"]
    training, batch = Training(host, ("adamw", "lambda")), host.batch(seed=77)
    with training.attach(
        tmp_path, controller=heard, signal="effective_rank", late="wait", probe=lambda model: host.loss(model, batch)
    ) as growth:
        training.train(8, growth)
    scores = {candidate.slot: candidate.score for candidate in heard.packets[-1].candidates}
    assert all(score is not None and 0 < score <= 1 for score in scores.values())


def test_nothing_is_started_for_a_signal_that_cannot_be_had(tmp_path: Path) -> None:
    host = ZOO["residual_mlp"]
    model = esper.wrap(host.model(), host.slots, example=host.batch().x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(esper.errors.ConfigError, match="ESP-2137"):
        esper.attach(
            model, optimizer, validate=lambda m: host.loss(m, host.batch()).reshape(1), every=4, budget="+50%",
            signal="gradient_snr", root=tmp_path,
        )  # fmt: skip
    assert not any(tmp_path.iterdir())
