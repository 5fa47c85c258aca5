"""The role of a wrapped model: it loads kernels by name, and describes itself."""

from typing import Any, cast

import torch
from torch import nn
from torch._compile import _disable_dynamo

from esper.contracts.adaptation import Action, AdaptationSignal
from esper.errors import ConfigError
from esper.kasmina.compiling import eager
from esper.kasmina.describe import Description
from esper.kasmina.discovery import find_places, note_final
from esper.kasmina.graft import join
from esper.kasmina.lifecycle import Seed, SeedState
from esper.kasmina.morph import take_role
from esper.kasmina.observe import watched
from esper.kasmina.placement import Placement, placement_of


class MorphableModel:
    """What ``esper.wrap`` makes of a model, in place; its class is a subclass of the model's own and of this one."""

    @property
    def esper(self) -> Description:
        """Describes slots and grafts; changes nothing."""
        return Description(cast(nn.Module, self))

    async def load_kernel(self, layer_name: str, seed_idx: int, artifact_id: str) -> None:
        """Fetch a validated kernel from the library and join it.

        Args:
            layer_name: Name of the slot.
            seed_idx: Index of the seed in the slot.
            artifact_id: Content address of the kernel.

        Raises:
            ConfigError: If the model has no library: none was given to ``wrap`` and no run is attached.
            NotFound: If there is no such slot or kernel.
            KernelRejected: If the kernel is not validated, or its bytes are not what the address says.
        """
        model = cast(nn.Module, self)
        placement = placement_of(model)
        if placement.grower is not None:
            await placement.grower.graft_kernel(layer_name, seed_idx, artifact_id)
            return
        if placement.library is None:
            raise ConfigError(
                "this model has no library to load from",
                todo="give esper.wrap a library=, or attach a run",
                code="ESP-2230",
            )
        placement.place(layer_name)
        data = await placement.library.read(artifact_id)
        _join_alone(model, placement, layer_name, seed_idx, artifact_id, data)

    async def apply_adaptation(self, signal: AdaptationSignal) -> bool:
        """Carry out what a signal asks for.

        Args:
            signal: A request to adapt, with its decision.

        Returns:
            Whether the model was changed.

        Raises:
            EsperError: As ``load_kernel`` does.
        """
        decision = signal.decision
        if not signal.requires_adaptation or decision is None or decision.action is not Action.LOAD_KERNEL:
            return False
        await self.load_kernel(str(decision.target_layer), decision.seed_idx, str(decision.kernel_id))
        return True


class ObservingModel(MorphableModel):
    """The same before its shapes are known: it watches its first forward pass, then never again."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and learn the shapes of its slots on the way; eagerly, also where it was compiled."""
        cls: Any = type(self)
        if not issubclass(cls, ObservingModel):  # torch.compile(model) keeps this method when the role is gone
            return cls.__call__(self, *args, **kwargs)
        if "_is_replica" in vars(self):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            return _uncompiled(self, args, kwargs)
        return _first_call(self, args, kwargs)


def _first_call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with eager(), watched(model) as record:
        output = super(ObservingModel, model).__call__(*args, **kwargs)
        note_final(record, output)
        settle(model, placement_of(model), record)
    take_role(model, MorphableModel)
    return output


_uncompiled = _disable_dynamo(_first_call)
"""The same for a call from compiled code; ``torch.compiler.disable`` would import the compiler here and now."""


def settle(model: nn.Module, placement: Placement, record: Any) -> None:
    """Fill a placement from one watched pass."""
    findings = find_places(model, placement.wanted, record)
    placement.slots.update({place.name: place for place in findings.places})
    placement.refusals.update(findings.refusals)
    placement.ready = True


def _join_alone(model: nn.Module, placement: Placement, slot: str, seed_idx: int, kernel_id: str, data: bytes) -> None:
    """Join a kernel where no run is attached; the caller's optimizer does not know of it."""
    seed = placement.seeds.setdefault((slot, seed_idx), Seed(slot, seed_idx))
    seed.move(SeedState.GERMINATED, step=0)
    try:
        join(model, slot, seed_idx, data, kernel_id=kernel_id)
    except Exception:
        seed.move(SeedState.CANCELLED, step=0)
        seed.move(SeedState.EMBARGOED, step=0)
        seed.move(SeedState.DORMANT, step=0)
        raise
    seed.move(SeedState.LOADED, step=0)
    seed.move(SeedState.BLENDING, step=0)
