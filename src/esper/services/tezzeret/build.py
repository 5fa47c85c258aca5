"""One build from order to reply, in the process that calls it."""

from esper.contracts.kernel import LEVELS, PUBLISHED_LEVEL
from esper.errors import CompilationError, EsperError
from esper.ir import BlueprintIR
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.execution import executed
from esper.services.tezzeret.gates.verdict import OutOfMemory, is_exhaustion
from esper.services.tezzeret.orders import (
    Additions,
    Execution,
    Exhausted,
    Order,
    Reply,
    build_of,
    finished,
    forged,
    refused,
)
from esper.services.tezzeret.validator import KernelValidator


class Builder:
    """Compiles and validates.

    Args:
        compiler: Makes the bytes.
        validator: Tries them.
    """

    def __init__(self, compiler: KernelCompiler, validator: KernelValidator) -> None:
        self._compiler, self._validator = compiler, validator

    def reply(self, order: Order | Execution) -> Reply:
        """Return what was asked for, or why there is none; nothing is raised."""
        try:
            if isinstance(order, Execution):
                return executed(order)
            return self._forged(order) if order.kernel_id is None else finished(self._additions(order))
        except EsperError as error:
            return refused(error)
        except OutOfMemory as error:
            return Exhausted(why=str(error))
        except Exception as error:
            if is_exhaustion(error):
                return Exhausted(why=str(error))
            why = f"{type(error).__name__}: {str(error)[:500]}"
            return refused(CompilationError("the blueprint could not be built", why=why))

    def _forged(self, order: Order) -> Reply:
        blueprint, build = _ordered(order), build_of(order)
        artifact = self._compiler.trainable(blueprint, build)
        report = self._validator.validate(artifact, blueprint, measured=False)
        # What nobody may graft is not worth a higher level.
        return forged(self._compiler.lift(artifact, build) if report.passed else artifact, report)

    def _additions(self, order: Order) -> Additions:
        """Make the kernel again, which gives the same bytes, and then only what is to be added."""
        blueprint, build = _ordered(order), build_of(order)
        artifact = self._compiler.trainable(blueprint, build)
        if artifact.artifact_id != order.kernel_id:
            raise CompilationError(
                f"kernel {str(order.kernel_id)[:80]} was not finished",
                why=f"its build gives {artifact.artifact_id[:19]} here",
                todo="build it again with this release",
            )
        report = self._validator.validate(artifact, blueprint) if order.again else None
        performance = (report and report.performance) or self._validator.measure(artifact, blueprint)
        if report is not None and not report.passed:
            return Additions((), performance, "it did not pass again", report)
        lifted = self._compiler.lift(artifact, build, above=LEVELS[0] if order.again else PUBLISHED_LEVEL)
        return Additions(lifted.inference, performance, lifted.metadata.get("shortfall", ""), report)


def _ordered(order: Order) -> BlueprintIR:
    blueprint = BlueprintIR.from_json(order.architecture_ir)
    if blueprint.digest != order.blueprint_id:
        raise CompilationError(
            f"blueprint {order.blueprint_id[:80]} was not built",
            why=f"its architecture has the digest {blueprint.digest}",
            todo="submit it again",
        )
    return blueprint
