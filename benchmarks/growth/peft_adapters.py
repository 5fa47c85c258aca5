"""LoRA and AdaLoRA of Hugging Face's PEFT on the same host: the peers of grafts on a frozen one."""

from types import SimpleNamespace
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.growth.adapters import LINEARS, PRUNED_FROM, PRUNED_UNTIL
from benchmarks.growth.runs import Run
from benchmarks.growth.tasks import Losses
from esper.demos.training import num_params

OVERSHOOT = 1.5
"""First rank of AdaLoRA as a multiple of the last: its authors' own, 12 for 8."""


class WithLoss(nn.Module):
    """A host that returns its loss as PEFT expects it, so that AdaLoRA adds its own penalty."""

    def __init__(self, host: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.host, self._losses = host, losses

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:
        """Return outputs, or the loss of a batch where there are labels."""
        outputs = self.host(inputs)
        return outputs if labels is None else SimpleNamespace(loss=self._losses(outputs, labels).mean())


class UniformLora:
    """LoRA of one rank on all linear layers of the blocks.

    Args:
        host: Frozen by PEFT.
        run: Has rank, steps, and the seed of the first weights.
        losses: What is trained for.
    """

    def __init__(self, host: nn.Module, run: Run, losses: Losses) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.model = get_peft_model(WithLoss(host, losses), self._config(run))

    @property
    def params(self) -> int:
        """Parameters of host and adapters."""
        return num_params(self.model)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, with what PEFT adds to it."""
        loss: Tensor = self.model(inputs, labels).loss
        return loss

    def settle(self, step: int) -> bool:
        """Nothing changes."""
        return False

    def _config(self, run: Run) -> LoraConfig:
        return LoraConfig(r=run.rank, lora_alpha=run.rank, target_modules=list(LINEARS))


class AdaptiveLora(UniformLora):
    """AdaLoRA: it begins at 1.5 times the rank and masks the least important triplets."""

    def settle(self, step: int) -> bool:
        """Let PEFT take note of the gradients, and mask."""
        self.model.base_model.update_and_allocate(step)
        return False

    @property
    def params(self) -> int:
        """Parameters of the host and of the triplets that are left: a masked one adds nothing to what is computed."""
        host = sum(
            p.numel() for name, p in self.model.named_parameters() if ".base_layer." in name or ".lora_" not in name
        )
        layers = [(name, module) for name, module in self.model.named_modules() if hasattr(module, "lora_E")]
        return (
            host - len(layers) + sum(self._left(name, layer) for name, layer in layers)
        )  # each has a count of its rank

    def _left(self, name: str, layer: Any) -> int:
        pattern = self.model.peft_config["default"].rank_pattern or {}
        masked = next(
            (kept for key, kept in pattern.items() if f"{name}.".endswith(f"{key.partition('.lora_E')[0]}.")), None
        )
        triplets = len(layer.lora_E["default"]) if masked is None else sum(masked)
        return triplets * (1 + layer.lora_A["default"].shape[1] + layer.lora_B["default"].shape[0])

    def _config(self, run: Run) -> AdaLoraConfig:
        return AdaLoraConfig(
            init_r=round(OVERSHOOT * run.rank),
            target_r=run.rank,
            lora_alpha=run.rank,
            target_modules=list(LINEARS),
            tinit=round(PRUNED_FROM * run.steps),
            tfinal=round((1 - PRUNED_UNTIL) * run.steps),
            total_step=run.steps,
        )


PEERS = {"PEFT LoRA": UniformLora, "PEFT AdaLoRA": AdaptiveLora}
