"""What a hand does to a model: it freezes the host, or plants grafts that help, that cannot, and that harm."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.kasmina.placement import CHILD

USEFUL, USELESS, INERT, HARMFUL, ABSENT = "useful", "useless", "inert", "harmful", "absent"
LINEAR = "low_rank"
"""Design of a useless graft: a linear map, which folds into the layer before it and adds nothing to what can be computed."""


def blueprint_of(plant: str, useful: str) -> str:
    """Return which design is planted, given the one that is of use at a task."""
    return LINEAR if plant == USELESS else useful


def doctor(model: nn.Module, plant: str) -> None:
    """Make what was grafted what it is to be.

    A harmful graft climbs its gradient instead of descending it. An inert one never learns, so that the training goes on, to the
    bit, as it would without it.
    """
    for name, parameter in model.named_parameters():
        if f"{CHILD}." not in name:
            continue
        if plant == INERT:
            parameter.requires_grad_(False)
        if plant == HARMFUL:
            parameter.register_hook(_reversed)


def freeze(model: nn.Module) -> None:
    """Keep a host as it is, running statistics of its batch norms included; what was grafted learns on."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f"{CHILD}." in name)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and f"{CHILD}." not in name:
            module.eval()


def _reversed(gradient: Tensor) -> Tensor:
    return -gradient
