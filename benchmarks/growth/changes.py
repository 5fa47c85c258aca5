"""Data that change: what there was before, and what came."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.growth.runs import Run
from benchmarks.growth.tasks import Data, Part, task_named

MORE_DATA, NEW_CLASSES, SHIFT = "more data", "new classes", "shift"
FIRST_SHARE = 0.125
"""Of the training examples of a task: what there is before more come."""
FIRST_CLASSES = 7
"""Of ten: those that there are before new ones come."""


def data_of(run: Run, texts: Path | None) -> Data:
    """Return what a run is trained on and held against.

    After a change the training part is what came, with what there was before where the run replays it; the held-out parts are
    those of the world as it is then, and ``old`` is the test part of the world before.
    """
    data = task_named(run.task).load(run.seed, texts)
    if not run.change:
        return data
    before, came = CHANGES[run.change](data)
    if not run.after:
        return before
    train = _together(before.train, came.train) if run.replay else came.train
    return Data(train, came.validation, came.test, old=before.test)


def _more_data(data: Data) -> tuple[Data, Data]:
    """A share of the examples, then the rest; the world stays as it is."""
    first = round(FIRST_SHARE * len(data.train.inputs))
    before, came = (_rows(data.train, rows) for rows in (slice(first), slice(first, None)))
    return Data(before, data.validation, data.test), Data(came, data.validation, data.test)


def _new_classes(data: Data) -> tuple[Data, Data]:
    """Some classes, then the others; afterwards every class has to be told from every other."""
    before = Data(*(_rows(part, part.labels < FIRST_CLASSES) for part in (data.train, data.validation, data.test)))
    return before, Data(_rows(data.train, data.train.labels >= FIRST_CLASSES), data.validation, data.test)


def _shift(data: Data) -> tuple[Data, Data]:
    """Inputs, then mirrored ones: signals run backwards, images are seen in a mirror, columns are in reverse order."""
    mirrored = (Part(part.inputs.flip(-1), part.labels) for part in (data.train, data.validation, data.test))
    return Data(data.train, data.validation, data.test), Data(*mirrored)


CHANGES: dict[str, Callable[[Data], tuple[Data, Data]]] = {
    MORE_DATA: _more_data,
    NEW_CLASSES: _new_classes,
    SHIFT: _shift,
}
"""What changes: from the data of a task to those before, and to what came with the held-out parts of the world then."""


def _rows(part: Part, rows: slice | Tensor) -> Part:
    return Part(part.inputs[rows], part.labels[rows])


def _together(*parts: Part) -> Part:
    return Part(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))
