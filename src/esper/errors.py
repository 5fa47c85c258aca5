"""Every error that Esper raises, branched by what the caller can do about it.

```text
EsperError
├── ConfigError               fix a setting or an argument
├── ContractError             fix the data that was sent
│   └── InvalidBlueprint      ... a blueprint; `path` is the JSON path of the fault
├── Unavailable               retry may help
│   ├── BusUnavailable
│   ├── StoreUnavailable
│   ├── ForgeUnavailable
│   ├── CircuitOpen
│   ├── DeadlineExceeded
│   └── ChildDied
├── NotFound                  nothing by that name
├── Conflict                  somebody else was first, or the time is wrong
│   ├── IllegalTransition
│   └── VersionTaken
├── Rejected                  a gate said no, and why
│   ├── CompilationError
│   ├── KernelRejected
│   └── UnsafeAdaptation
└── GraftFailed               growing failed; the host was restored
```

Each error says what failed, why, and what to do, and carries a stable code that the documentation explains.
"""

from typing import ClassVar


class EsperError(Exception):
    """Something Esper could not do.

    Args:
        what: What failed, as a clause without a full stop.
        why: The reason.
        todo: What the caller can do about it.
        code: Stable code for the documentation; the class's own where it is left out.
    """

    default_code: ClassVar[str] = "ESP-1000"

    def __init__(self, what: str, *, why: str = "", todo: str = "", code: str | None = None) -> None:
        self.what = what
        self.why = why
        self.todo = todo
        self.code = code or self.default_code
        super().__init__(self._sentence())

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.__dict__.copy(), str(self))

    def _sentence(self) -> str:
        reason = f": {self.why}" if self.why else ""
        advice = f". {self.todo}" if self.todo else ""
        return f"{self.code}: {self.what}{reason}{advice}"


def _restored(cls: type[EsperError], fields: dict[str, object], message: str) -> EsperError:
    """Rebuild an error that crossed a process border, fields and all."""
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(fields)
    return error


class ConfigError(EsperError):
    """A setting or an argument cannot be used."""

    default_code = "ESP-2000"


class ContractError(EsperError):
    """Data that was sent does not keep its contract."""

    default_code = "ESP-3000"


class InvalidBlueprint(ContractError):
    """A blueprint breaks a rule of the intermediate representation.

    Args:
        what: What failed.
        path: JSON path of the fault, such as ``$.nodes[2].attrs.kernel``.
        why: The rule that was broken.
        todo: What to change.
        code: Stable code.
    """

    default_code = "ESP-3100"

    def __init__(self, what: str, *, path: str, why: str = "", todo: str = "", code: str | None = None) -> None:
        self.path = path
        super().__init__(f"{what} at {path}", why=why, todo=todo, code=code)


class Unavailable(EsperError):
    """A part that is needed does not answer; trying again may help."""

    default_code = "ESP-4000"


class BusUnavailable(Unavailable):
    """The message bus does not answer."""

    default_code = "ESP-4100"


class StoreUnavailable(Unavailable):
    """The artifact store does not answer."""

    default_code = "ESP-4200"


class ForgeUnavailable(Unavailable):
    """The compilation forge does not answer."""

    default_code = "ESP-4300"


class CircuitOpen(Unavailable):
    """A circuit breaker holds calls back after repeated outages."""

    default_code = "ESP-4400"


class DeadlineExceeded(Unavailable):
    """The answer did not come in time."""

    default_code = "ESP-4500"


class ChildDied(Unavailable):
    """A supervised child process ended while it was needed.

    Args:
        what: Which child, and what it was doing.
        how: How it ended, such as ``signal SIGSEGV`` or ``exit code 1``.
        stderr: The end of what it wrote to its standard error.
    """

    default_code = "ESP-4600"

    def __init__(self, what: str, *, how: str, stderr: str = "") -> None:
        self.how = how
        self.stderr = stderr
        last = stderr.strip().rpartition("\n")[2]
        super().__init__(what, why=f"{how}; it last said: {last}" if last else how)


class NotFound(EsperError):
    """Nothing exists by that name."""

    default_code = "ESP-5000"


class Conflict(EsperError):
    """The request does not fit the present state."""

    default_code = "ESP-6000"


class IllegalTransition(Conflict):
    """A lifecycle has no such edge."""

    default_code = "ESP-6100"


class VersionTaken(Conflict):
    """That name and version exist already."""

    default_code = "ESP-6200"


class Rejected(EsperError):
    """A gate refused, and says why."""

    default_code = "ESP-7000"


class CompilationError(Rejected):
    """A blueprint could not be compiled."""

    default_code = "ESP-7100"


class KernelRejected(Rejected):
    """A kernel failed its validation."""

    default_code = "ESP-7200"


class UnsafeAdaptation(Rejected):
    """A change to the model is not safe now."""

    default_code = "ESP-7300"


class GraftFailed(EsperError):
    """A graft could not be joined; the host is as it was before."""

    default_code = "ESP-8000"
