"""When to grow: early in a run from scratch, or at a confirmed plateau; never against a widening gap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.contracts.adaptation import LossPoint, Reason, SystemStatePacket
from esper.detect.plateau import Plateau, plateau
from esper.services.tamiyo.config import PlateauConfig


@dataclass(frozen=True)
class Timing:
    """Whether this is a time to grow.

    Attributes:
        grow: Whether it is.
        why: The reason, in one line.
        evidence: The same in numbers.
        patient: Whether there is time to wait for a better kernel that is being compiled.
    """

    grow: bool
    why: str
    evidence: tuple[Reason, ...]
    patient: bool = False


def when(packet: SystemStatePacket, *, room: int, config: PlateauConfig) -> Timing:
    """Decide whether a graft should join at the packet's boundary plus its lead.

    Args:
        packet: The state of the run.
        room: Grafts for which there are still slots and budget.
        config: Settings.

    Returns:
        The verdict with its reasons, also where it is no.
    """
    against = _against(packet, config)
    if against is not None:
        return against
    early = _early(packet, room, config)
    if early is not None and early.grow:
        return early
    settled = _same_plateau(packet, config) or _at_plateau(packet, config)
    return settled if settled.grow or early is None else early


def joining_step(packet: SystemStatePacket) -> int:
    """Return the optimizer step at which a graft that is decided now joins."""
    return packet.step + packet.lead * packet.every


# -- never ---------------------------------------------------------------------------------------------------------------


def _against(packet: SystemStatePacket, config: PlateauConfig) -> Timing | None:
    """Say what forbids growth whatever the time, or None."""
    if not packet.history:
        return Timing(False, "no boundary has been measured yet", (_reason("boundaries measured", "boundaries", 0, 1),))
    last = packet.history[-1]
    if not math.isfinite(last.validation):
        finite = _reason("the held-out loss is not finite", "finite_losses", 0, 1)
        return Timing(False, finite.text, (finite,))
    return _gap(packet, last, config)


def _gap(packet: SystemStatePacket, last: LossPoint, config: PlateauConfig) -> Timing | None:
    """Veto growth where the model already fits the training data far better than the rest, and gets worse at the rest."""
    recent = packet.history[-config.gap_boundaries :]
    if last.train is None or last.validation <= 0 or len(recent) < config.gap_boundaries:
        return None
    ratio = last.train / last.validation
    trend = plateau([point.validation for point in recent], least_ratio=config.least_fall_ratio)
    if trend is None or not trend.rising or ratio >= config.gap_ratio:
        return None
    why = (
        f"growth will not help: training loss {last.train:.3g} is {ratio:.0%} of the held-out loss {last.validation:.3g}, "
        f"which rose by {-trend.fall:.2g} ± {trend.error:.1g} over {len(recent)} boundaries"
    )
    gap = _reason("training loss as a share of the held-out loss", "gap_ratio", ratio, config.gap_ratio)
    rise = _reason("rise of the held-out loss", "held_out_rise", -trend.fall, trend.threshold)
    return Timing(False, why, (gap, rise))


# -- early ---------------------------------------------------------------------------------------------------------------


def _early(packet: SystemStatePacket, room: int, config: PlateauConfig) -> Timing | None:
    """Spread the grafts that have room evenly over the early share; None where that time is over or not known."""
    if packet.steps is None:
        return None
    joins, steps = joining_step(packet), packet.steps
    if joins > config.latest_share * steps:
        return None
    planned = max(1, len(packet.grafts) + room)
    spread = config.early_share - config.startup_share
    due = round((config.startup_share + spread * len(packet.grafts) / planned) * steps)
    share = _reason("share of the run at the joining", "early_share", joins / steps, due / steps)
    latest = _reason("latest share of the run for an early graft", "latest_share", joins / steps, config.latest_share)
    if joins < due:
        nth = f"graft {len(packet.grafts) + 1} of {planned}"
        return Timing(False, f"early: {nth} is due at step {due}, the next boundary is {joins}", (share,))
    return Timing(
        True, f"early, at {joins / steps:.0%} of the run", (share, latest), joins <= config.early_share * steps
    )


# -- at a plateau --------------------------------------------------------------------------------------------------------


def _at_plateau(packet: SystemStatePacket, config: PlateauConfig) -> Timing:
    since = packet.grafts[-1] if packet.grafts else 0
    points = [point for point in packet.history if point.step > since][-config.plateau_boundaries :]
    if len(points) < config.plateau_boundaries:
        enough = _reason("boundaries since the last graft", "boundaries", len(points), config.plateau_boundaries)
        why = f"{len(points)} of {config.plateau_boundaries} boundaries that a plateau takes since the last graft"
        return Timing(False, why, (enough,))
    found = _flatness(points, config)
    if found is None:
        return Timing(False, "a held-out loss is not finite", (_reason("finite losses", "finite_losses", 0, 1),))
    over = points[-1].step - points[0].step
    fall = _reason(f"fall of the held-out loss over {over} steps", "held_out_fall", found.fall, found.threshold)
    if not found.flat:
        why = f"the held-out loss still falls, by {found.fall:.2g} ± {found.error:.1g} over {over} steps"
        return Timing(False, why, (fall,))
    return _if_enough_remains(packet, f"plateau over {over} steps", (fall,), config)


def _same_plateau(packet: SystemStatePacket, config: PlateauConfig) -> Timing | None:
    """Go on with the grafts that one plateau brings, or None where no plateau has just begun to be grown at."""
    burst = _burst(packet)
    if not 0 < len(burst) < config.plateau_grafts:
        return None
    before = packet.grafts[-len(burst) - 1] if len(packet.grafts) > len(burst) else 0
    points = [point for point in packet.history if before < point.step <= burst[0]][-config.plateau_boundaries :]
    found = _flatness(points, config) if len(points) == config.plateau_boundaries else None
    if found is None or not found.flat:
        return None
    nth = _reason("grafts at this plateau", "plateau_grafts", len(burst), config.plateau_grafts)
    why = f"plateau at step {burst[0]}, graft {len(burst) + 1} of {config.plateau_grafts}"
    return _if_enough_remains(packet, why, (nth,), config)


def _burst(packet: SystemStatePacket) -> Sequence[int]:
    """Return the steps of the latest grafts that followed each other, and now, as fast as decisions can."""
    reach = (packet.lead + 1) * packet.every
    first, following = len(packet.grafts), packet.step
    while first > 0 and following - packet.grafts[first - 1] <= reach:
        first -= 1
        following = packet.grafts[first]
    return packet.grafts[first:]


def _flatness(points: Sequence[LossPoint], config: PlateauConfig) -> Plateau | None:
    return plateau([point.validation for point in points], least_ratio=config.least_fall_ratio)


def _if_enough_remains(
    packet: SystemStatePacket, why: str, evidence: tuple[Reason, ...], config: PlateauConfig
) -> Timing:
    """Advise against a graft that has too little of the run left to pay for itself."""
    if packet.steps is None:
        return Timing(True, why, evidence)
    share = max(0.0, 1 - joining_step(packet) / packet.steps)
    remaining = _reason("share of the run that remains", "remaining_share", share, config.least_remaining_share)
    if share >= config.least_remaining_share:
        return Timing(True, why, (*evidence, remaining))
    left = f"{share:.0%} of the run remain and a graft needs {config.least_remaining_share:.0%}"
    return Timing(False, f"{why}, but {left}: train on without growing", (*evidence, remaining))


def _reason(text: str, name: str, value: float, threshold: float | None = None) -> Reason:
    return Reason(text=text, name=name, value=value, threshold=threshold)
