"""A training process of a demo: reads jobs from standard input, one per line, and answers on standard output."""

import os
import sys
import traceback
from typing import BinaryIO

import torch

from esper.demos.messages import Failed, Job, Message, read_job, written
from esper.demos.training import train
from esper.errors import EsperError


def main() -> None:
    """Do jobs until standard input ends, or nobody listens any more."""
    torch.set_num_threads(1)  # two of these run beside each other, and the matrices are tiny
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints, from C too, must not be taken for an answer
    try:
        for line in sys.stdin.buffer:
            _say(answers, _done(read_job(line), answers))
    except BrokenPipeError:
        sys.exit(1)


def _done(job: Job, answers: BinaryIO) -> Message:
    try:
        return train(job, lambda message: _say(answers, message))
    except BrokenPipeError:
        raise
    except EsperError as error:
        return Failed.by(job, error)
    except Exception as error:
        traceback.print_exc()
        return Failed.by(job, error)


def _say(answers: BinaryIO, message: Message) -> None:
    answers.write(written(message))
    answers.flush()


if __name__ == "__main__":
    main()
