"""A few steps of everything, one graft included, to see before a long run that it will go."""

from esper.contracts.adaptation import KERNEL_NOT_READY, OVER_BUDGET
from esper.services.tolaria.distributed.team import told_text
from esper.services.tolaria.trainer.config import TrainerConfig
from esper.services.tolaria.trainer.loop import Loop, Work

STEPS = 4
VALIDATION_BATCHES = 2
"""Two boundaries of two steps each, and enough batches to meet every part."""


def rehearsal_steps(config: TrainerConfig) -> int:
    """Return the length of a rehearsal: every validation that is asked for by steps is met too."""
    return max(STEPS, min(config.validation.every_steps or 0, 2 * STEPS))


def rehearse(loop: Loop, work: Work) -> None:
    """Take a first step, graft the cheapest candidate, and validate.

    Raises:
        EsperError: Whatever would go wrong in the run.
    """
    work.stepper.model.train()
    loop.step()
    slot, blueprint = told_text(work.team, lambda: "\n".join(_cheapest(work))).split("\n")
    if blueprint:
        work.progress.say(str(work.growth.graft(slot, blueprint)))
    else:
        work.progress.say("rehearsal: nothing can grow here; esper.plan(model, example) says why")
    loop.validate()


def _cheapest(work: Work) -> tuple[str, str]:
    """Return slot and blueprint of the cheapest candidate; empty where there is none."""
    free = [c for c in work.growth.propose() if all(_is_of_the_moment(mask) for mask in c.masked)]
    if not free:
        return "", ""
    chosen = min(free, key=lambda candidate: candidate.params)
    return str(chosen.slot), chosen.blueprint


def _is_of_the_moment(mask: str) -> bool:
    """Tell whether a reason against a candidate binds controllers alone: a kernel that is waited for, or the budget."""
    return mask == KERNEL_NOT_READY or mask.startswith(OVER_BUDGET)
