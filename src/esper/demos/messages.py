"""What a demo and its training processes say to each other: one JSON object per line."""

from typing import TypeAlias

import msgspec

from esper import errors
from esper.demos.arms import Arm
from esper.errors import EsperError, InvalidBlueprint


class Score(msgspec.Struct, frozen=True):
    """How a model does on a part of the data.

    Attributes:
        accuracy: Share of right answers, from 0 to 1.
        loss: Mean loss, in nats.
    """

    accuracy: float
    loss: float


class Place(msgspec.Struct, frozen=True):
    """One graft of a final network: which blueprint at which slot."""

    slot: str
    seed_idx: int
    blueprint: str


class Job(msgspec.Struct, frozen=True):
    """One arm on one seed.

    Attributes:
        task: Name of the task.
        arm: Which arm.
        seed: Of data, initial weights and batches.
        rate: Peak learning rate.
        root: Folder for what growing runs write.
        flops: Training FLOPs to spend, or None for the task's number of steps.
        places: Grafts that are there from the start.
        quick: Whether the task is cut short.
        read_test: Whether the test part is read at the end; tuning never does.
    """

    task: str
    arm: Arm
    seed: int
    rate: float
    root: str
    flops: int | None = None
    places: tuple[Place, ...] = ()
    quick: bool = False
    read_test: bool = True


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A job has begun: how many steps it will take, and how large its model is."""

    arm: Arm
    seed: int
    steps: int
    params: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Steps that a job has taken so far."""

    arm: Arm
    seed: int
    step: int


class Grown(msgspec.Struct, frozen=True, tag="grown"):
    """Something happened to a growing model.

    Attributes:
        arm: Which arm.
        seed: On which seed.
        step: Optimizer step.
        action: What happened.
        slot: Where.
        blueprint: What.
        why: The reason, with its numbers.
        gain: Fall of the held-out loss over the evaluation, or None.
        kept: Whether the graft stayed, or None while that is open.
        added_params: Parameters of the graft.
        validation: How the model does on the validation part.
    """

    arm: Arm
    seed: int
    step: int
    action: str
    slot: str
    blueprint: str
    why: str
    gain: float | None
    kept: bool | None
    added_params: int
    validation: Score


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """A job is done.

    Attributes:
        arm: Which arm.
        seed: On which seed.
        steps: Optimizer steps taken, those of undone grafts included.
        params: Parameters at the end.
        train_flops: All that was spent: training steps, evaluations, statistics and probes.
        validation: How the model does on the validation part at the end.
        test: How on the test part, or None where that was not read.
        places: Grafts at the end.
        waits: Calls that blocked training unasked.
        late_waits: Waits for the forge and the controller that ``late="wait"`` asked for.
    """

    arm: Arm
    seed: int
    steps: int
    params: int
    train_flops: int
    validation: Score
    test: Score | None
    places: tuple[Place, ...] = ()
    waits: int = 0
    late_waits: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A job ended with an error.

    Attributes:
        arm: Which arm.
        seed: On which seed.
        kind: Name of the error's class.
        what: What failed.
        why: The reason.
        todo: What can be done about it.
        code: Its stable code, or None.
    """

    arm: Arm
    seed: int
    kind: str
    what: str
    why: str = ""
    todo: str = ""
    code: str | None = None

    @classmethod
    def by(cls, job: "Job", error: Exception) -> "Failed":
        """Describe what ended a job."""
        if isinstance(error, EsperError):
            return cls(job.arm, job.seed, type(error).__name__, error.what, error.why, error.todo, error.code)
        what = f"training {job.arm} on seed {job.seed}"
        todo = "its trace is on standard error"
        return cls(job.arm, job.seed, "EsperError", what, f"{type(error).__name__}: {error}", todo)

    def error(self) -> EsperError:
        """Return the error again, of the same class where that takes what every error takes."""
        kind = getattr(errors, self.kind, EsperError)
        fitting = kind if issubclass(kind, EsperError) and kind is not InvalidBlueprint else EsperError
        return fitting(self.what, why=self.why, todo=self.todo, code=self.code)


Message: TypeAlias = Started | Progress | Grown | Trained | Failed
"""What a training process says."""

_jobs = msgspec.json.Decoder(Job)
_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def written(thing: Job | Message) -> bytes:
    """Return a job or message as one line."""
    return msgspec.json.encode(thing) + b"\n"


def read_job(line: bytes) -> Job:
    """Read a job."""
    return _jobs.decode(line)


def read_message(line: bytes) -> Message:
    """Read a message."""
    return _messages.decode(line)
