"""torch's ``AveragedModel`` in a training that grows."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from esper.kasmina.mirroring import check_mirror, mirror_grafts
from esper.services.tolaria.copies import copied


class FollowingAverage:
    """Lets an average of a model's weights grow with the model, and takes and puts it back by name.

    The average of a newborn starts at the values of its birth. torch pairs the parameters of model and average by
    position, which is right as long as both have the same grafts.

    Args:
        model: Wrapped.
        average: Made from the model, before or after it was wrapped.

    Raises:
        ConfigError: If it was made from another model.
    """

    def __init__(self, model: nn.Module, average: AveragedModel) -> None:
        check_mirror(model, average.module)
        self._model, self._average = model, average
        self.follow()

    def follow(self) -> None:
        """Give the average the grafts of the model."""
        mirror_grafts(self._model, self._average.module)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the averages by name, and of how many steps are in them."""
        return {name: copied(tensor) for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take averages back; the model's grafts are those of the state already."""
        present = self._tensors()
        for name, saved in state_dict.items():
            now = present.get(name)
            if now is not None and now.shape == saved.shape:
                now.copy_(saved)
            else:  # a buffer that the forward pass replaced by one of another shape
                owner, _, leaf = name.rpartition(".")
                self._average.get_submodule(owner)._buffers[leaf] = copied(saved)

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self._average.named_parameters()), **dict(self._average.named_buffers())}
