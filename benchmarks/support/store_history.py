"""What callers of a store were told, what is there afterwards, and a checker that finds broken promises between the two.

The checker asks no store. Rows are read by ``psql``, bytes from the disk of the S3 server, messages from the bus, and what was
announced from a table that a trigger of the database fills in the transaction of each announcement.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Promise(StrEnum):
    """What a store must not do."""

    LOST = "lost_writes"
    """A write was acknowledged and is not there."""
    HOLLOW = "rows_without_bytes"
    """A kernel is there, and its bytes are not, or are others."""
    TORN = "torn_versions"
    """Versions of a name have a gap or a double."""
    HALF = "half_writes"
    """A part of what is written together is there, and another is not."""
    SILENT = "lost_events"
    """An announcement was committed and never reached the bus, or a build was queued without one."""
    INVENTED = "invented_events"
    """The bus has a message that no committed transaction announced, or that is about nothing."""


class Breach(NamedTuple):
    """A broken promise.

    Attributes:
        promise: Which one.
        about: Id or name of what it is about.
        why: What is wrong.
    """

    promise: Promise
    about: str
    why: str


@dataclass
class Noted:
    """What callers were told, by the ids of what they wrote.

    Attributes:
        blueprints: Designs whose submission was acknowledged.
        kernels: Kernels whose build was acknowledged as complete, by their job.
        retired: Kernels whose retirement was asked for: True where it was acknowledged.
        outcomes: Decisions whose outcome was acknowledged.
        refused: Calls that failed; whether they had an effect is unknown.
        sizes: How many bytes every kernel has that was ever sent.
    """

    blueprints: set[str] = field(default_factory=set)
    kernels: dict[str, str] = field(default_factory=dict)
    retired: dict[str, bool] = field(default_factory=dict)
    outcomes: set[str] = field(default_factory=set)
    refused: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged."""
        return len(self.blueprints) + len(self.kernels) + len(self.outcomes) + sum(self.retired.values())


class KernelLeft(NamedTuple):
    """A kernel's row: where its bytes are, how many it says they are, its status, and whether it has a report."""

    ref: str
    size_bytes: int
    status: str
    has_report: bool


@dataclass
class Left:
    """What is there afterwards.

    Attributes:
        blueprints: Name and version by id.
        named: Blueprints that can be found by their words.
        jobs: Blueprint, status and kernel by job.
        kernels: Rows by id.
        outcomes: Decisions.
        bytes: Size by digest, of bytes that have it.
        announced: Blueprint by the id of each message whose announcement was committed.
        heard: Blueprint by the id of each message on the bus.
        told: The same of the progress of builds, as it was committed.
        followed: The same of the progress of builds on the bus.
    """

    blueprints: dict[str, tuple[str, int]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    jobs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    kernels: dict[str, KernelLeft] = field(default_factory=dict)
    outcomes: set[str] = field(default_factory=set)
    bytes: dict[str, int] = field(default_factory=dict)
    announced: dict[str, str] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    followed: dict[str, str] = field(default_factory=dict)


def breaches(noted: Noted, left: Left) -> list[Breach]:
    """Return every broken promise."""
    return [*_lost(noted, left), *_hollow(noted, left), *_torn(left), *_half(left), *_events(left)]


def _lost(noted: Noted, left: Left) -> Iterator[Breach]:
    queued = {blueprint for blueprint, _, _ in left.jobs.values()}
    for blueprint in noted.blueprints - left.blueprints.keys():
        yield Breach(Promise.LOST, blueprint, "a blueprint that was acknowledged")
    for blueprint in (noted.blueprints & left.blueprints.keys()) - queued:
        yield Breach(Promise.LOST, blueprint, "the build of a blueprint that was acknowledged")
    for kernel, job in noted.kernels.items():
        found = left.kernels.get(kernel)
        if found is None:
            yield Breach(Promise.LOST, kernel, "a kernel that was acknowledged")
        elif left.jobs.get(job, ("", "", ""))[1:] != ("done", kernel):
            yield Breach(Promise.LOST, kernel, f"the end of job {job} that was acknowledged")
        elif found.status != "validated" and kernel not in noted.retired:
            yield Breach(Promise.LOST, kernel, f"a validation that was acknowledged; it is {found.status}")
        elif noted.retired.get(kernel) and found.status != "retired":
            yield Breach(Promise.LOST, kernel, f"a retirement that was acknowledged; it is {found.status}")
    for decision in noted.outcomes - left.outcomes:
        yield Breach(Promise.LOST, decision, "an outcome that was acknowledged")


def _hollow(noted: Noted, left: Left) -> Iterator[Breach]:
    for kernel, row in left.kernels.items():
        size = left.bytes.get(row.ref)
        if row.ref != kernel or size is None:
            yield Breach(Promise.HOLLOW, kernel, f"there are no such bytes at {row.ref}")
        elif not size == row.size_bytes == noted.sizes.get(kernel, size):
            yield Breach(Promise.HOLLOW, kernel, f"its row says {row.size_bytes} bytes, and there are {size}")


def _torn(left: Left) -> Iterator[Breach]:
    versions: dict[str, list[int]] = defaultdict(list)
    for name, version in left.blueprints.values():
        versions[name].append(version)
    for name, found in versions.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            yield Breach(Promise.TORN, name, f"its versions are {sorted(found)}")


def _half(left: Left) -> Iterator[Breach]:
    for blueprint in left.blueprints.keys() - left.named:
        yield Breach(Promise.HALF, blueprint, "a blueprint without the words of its name")
    for kernel, row in left.kernels.items():
        if not row.has_report:
            yield Breach(Promise.HALF, kernel, f"a kernel without a report; it is {row.status}")
    for job, (blueprint, status, kernel) in left.jobs.items():
        if status == "done" and kernel not in left.kernels:
            yield Breach(Promise.HALF, job, f"a build that is done without its kernel {kernel!r}")
        if blueprint not in left.blueprints:
            yield Breach(Promise.HALF, job, f"a build of {blueprint}, which is not there")


def _events(left: Left) -> Iterator[Breach]:
    for announced, heard in ((left.announced, left.heard), (left.told, left.followed)):
        for message in announced.keys() - heard.keys():
            yield Breach(Promise.SILENT, message, f"{announced[message]} was announced, and nobody heard of it")
        for message, blueprint in heard.items():
            if announced.get(message) != blueprint:
                yield Breach(Promise.INVENTED, message, f"{blueprint} was heard of, and that was never announced")
            elif blueprint not in left.blueprints:
                yield Breach(Promise.INVENTED, message, f"{blueprint} was heard of, and is not there")
    for job, (blueprint, _, _) in left.jobs.items():
        if blueprint not in left.announced.values():
            yield Breach(Promise.SILENT, job, f"{blueprint} was queued without an announcement")
        if blueprint not in left.told.values():
            yield Breach(Promise.SILENT, job, f"{blueprint} was queued, and its progress says nothing of it")
