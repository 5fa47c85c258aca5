"""Controllers whose every word is known beforehand, for whoever tests what a run makes of a decision."""

from esper.contracts.adaptation import Action, AdaptationDecision, SystemStatePacket


class Silent:
    """Never asks for anything."""

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Return a "no"."""
        return AdaptationDecision(reason="silent", topology_version=packet.topology_version)


class GraftAt:
    """Asks for one graft each at given boundaries: front first, then by name of the blueprint.

    Its word is a function of the packet alone, so a run that resumes hears the same.

    Args:
        boundaries: At which it asks; the graft joins ``lead`` boundaries later.
        blueprint: The only one that it asks for, or None for any.
    """

    def __init__(self, *boundaries: int, blueprint: str | None = None) -> None:
        self._boundaries, self._blueprint = boundaries, blueprint

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Return the graft whose time has come, if one is free."""
        free = [c for c in packet.candidates if not c.masked and self._blueprint in (None, c.blueprint)]
        if packet.boundary not in self._boundaries or not free:
            return AdaptationDecision(reason="not now", topology_version=packet.topology_version)
        chosen = min(free, key=lambda candidate: (candidate.order, candidate.blueprint))
        return AdaptationDecision(
            action=Action.LOAD_KERNEL, reason="planted", topology_version=packet.topology_version,
            boundary=packet.boundary + packet.lead, target_layer=chosen.slot, seed_idx=chosen.seed_idx,
            blueprint=chosen.blueprint, kernel_id=chosen.kernel_id,
        )  # fmt: skip
