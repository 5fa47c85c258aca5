"""One training as data, and what came of it."""

import hashlib

import msgspec

from esper.demos.messages import Place

VERSION = 3
"""Raised whenever what a run does changes, so that no stored result is taken for one of another kind."""


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One training of one arm on one seed.

    Attributes:
        task: Name of the task.
        arm: Name of the arm in its table.
        seed: Of data, initial weights and batches.
        rate: Peak learning rate; the schedule spans the run's own steps.
        width: Of the host; `tasks.ON_A_WIDE_PATH` for what growth begins with where the size is not known.
        steps: Optimizer steps, or 0 where FLOPs are given.
        flops: FLOPs to spend on training, or 0 where steps are given.
        places: Grafts that are there from the start.
        planted: Grafts that a hand puts in before the first step, under ``esper.attach``.
        controller: Which controller grows the host, or "" for none.
        begin: Key of the run that this one continues, with its weights and moments; "" for new weights.
        keep: Whether the end is kept for runs that continue from it.
        change: How the data of the task change, or "" for all of them at once.
        after: Whether it is trained on what came with the change; otherwise on what there was before.
        replay: Whether what there was before is trained on again.
        frozen: Whether the host stays as it begins, so that grafts alone learn.
        adapters: What learns on a frozen host, or "" where the host itself does.
        rank: Of the uniform LoRA whose number of parameters is the budget of all adapters.
        grafts: How many of the task's own design the controller may place, or 0 where it may choose design and number.
        plant: What a hand grafts after a quarter of the run to be judged (`plants`), or "" where ``planted`` joins at the start.
        shrink: Whether grafts that do not earn their rent leave after the last step.
        read_test: Whether the test part is read at the end; tuning never does.
    """

    task: str
    arm: str
    seed: int
    rate: float
    width: int
    steps: int = 0
    flops: int = 0
    places: tuple[Place, ...] = ()
    planted: tuple[Place, ...] = ()
    controller: str = ""
    begin: str = ""
    keep: bool = False
    change: str = ""
    after: bool = False
    replay: bool = False
    frozen: bool = False
    adapters: str = ""
    rank: int = 0
    grafts: int = 0
    plant: str = ""
    shrink: bool = False
    read_test: bool = True

    @property
    def key(self) -> str:
        """Name of the run: a digest of all that it depends on."""
        return hashlib.sha256(b"%d" % VERSION + msgspec.json.encode(self)).hexdigest()[:20]


class Verdict(msgspec.Struct, frozen=True):
    """What the product said of a graft.

    Attributes:
        step: When.
        kind: What became of it.
        gain: Fall of the held-out loss, or None where it was not measured.
        error: Spread of the same in graft-free windows, or None where there are too few.
    """

    step: int
    kind: str
    gain: float | None
    error: float | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run.

    Attributes:
        run: Which run.
        commit: Of the code that made it.
        steps: Optimizer steps taken.
        params: Parameters at the end.
        flops: All that was spent: training, evaluations at boundaries, statistics, probes.
        overhead: The part of it that was not training steps.
        validation: Quality on the validation part at the end, in points.
        validation_loss: Mean loss there.
        test: Quality on the test part, or None where it was not read.
        test_loss: Mean loss there, or None.
        old_test: Quality on the test part of the data before a change, or None where there was none or it was not read.
        places: Grafts at the end.
        curve: FLOPs spent so far and mean validation loss, along the run.
        events: What happened to the model, as told to people.
        seconds: Wall time.
        birth: Largest change of an output by adapters at their birth, or None where there are none.
        verdicts: What was said of grafts.
        held: Step and mean held-out loss of the averaged weights, at each boundary of a growing run.
    """

    run: Run
    commit: str
    steps: int
    params: int
    flops: int
    overhead: int
    validation: float
    validation_loss: float
    test: float | None
    test_loss: float | None
    places: tuple[Place, ...]
    curve: tuple[tuple[int, float], ...]
    events: tuple[str, ...]
    seconds: float
    old_test: float | None = None
    birth: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    held: tuple[tuple[int, float], ...] = ()
