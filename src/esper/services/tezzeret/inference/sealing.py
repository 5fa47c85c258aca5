"""The forge vouches for what its levels add, in the parent: no child ever holds the key."""

from datetime import UTC, datetime

import esper
from esper.contracts.kernel import InferenceArtifact, InferenceForm
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.signing.keys import SigningKey
from esper.signing.sealed import Made, seal


class Sealer:
    """Seals forms with one key.

    Args:
        key: The forge's.
        clock: Dates the seals.
    """

    def __init__(self, key: SigningKey, clock: Clock | None = None) -> None:
        self._key, self._clock = key, clock or SystemClock()

    def seal(self, form: InferenceForm, data: bytes, blueprint_id: str) -> bytes:
        """Return the seal of a form's bytes."""
        made = made_of(form.backend, blueprint_id, form.torch, form.device)
        return seal(data, made, self._key, now=moment(self._clock))

    def sealed(self, forms: tuple[InferenceArtifact, ...], blueprint_id: str) -> tuple[InferenceArtifact, ...]:
        """Return forms with their seals."""
        return tuple(
            made.model_copy(update={"seal": self.seal(made.form, made.data, blueprint_id)}) for made in forms
        )  # fmt: skip


def made_of(backend: str, blueprint_id: str, torch_version: str, device: str) -> Made:
    """Return how a form came about, as its seal says it."""
    compiler = f"esper.tezzeret {esper.__version__}"
    return Made(kind=backend, blueprint=blueprint_id, compiler=compiler, torch=torch_version, device=device)


def moment(clock: Clock) -> datetime:
    """Return a clock's time as seals have it."""
    return datetime.fromtimestamp(clock.now_s(), UTC)
