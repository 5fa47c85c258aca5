"""The folder of all checkpoints of a training: which there are, which is the newest, which may go."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esper.errors import ContractError
from esper.runtime.files import own_folder
from esper.services.tolaria.checkpoint.folder import remove_checkpoint, sweep
from esper.services.tolaria.checkpoint.manifest import Manifest, read_manifest

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"(\d{8,})-step-\d+(?:-[a-z0-9-]+)?")
LOCK, READING = ".lock", ".reading"


@dataclass(frozen=True)
class Retention:
    """How many checkpoints are kept.

    Attributes:
        last: Newest ones without a tag.
        best: Those with the best metric.
        tagged: Newest ones of each tag.
        lower_is_better: Whether the smallest metric is the best.
    """

    last: int
    best: int
    tagged: int
    lower_is_better: bool

    def kept(self, manifests: list[Manifest]) -> set[int]:
        """Return the serial numbers of the checkpoints that stay."""
        newest = sorted(manifests, key=lambda manifest: -manifest.serial)
        kept = {manifest.serial for manifest in self.ranked(manifests)[: self.best]}
        for tag in {manifest.tag for manifest in newest}:
            number = self.tagged if tag else self.last
            kept.update([manifest.serial for manifest in newest if manifest.tag == tag][:number])
        return kept

    def ranked(self, manifests: list[Manifest]) -> list[Manifest]:
        """Return those with a finite metric, the best first; of equal ones the newest."""
        sign = 1 if self.lower_is_better else -1
        measured = [(sign * m.metric, -m.serial, m) for m in manifests if m.metric is not None]
        finite = [entry for entry in measured if entry[0] - entry[0] == 0]
        return [manifest for _, _, manifest in sorted(finite, key=lambda entry: entry[:2])]


class Shelf:
    """The checkpoints in one folder.

    Args:
        folder: Where; it is made, and what a crash left half written there is taken away.
        retention: How many are kept.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], retention: Retention) -> None:
        self.folder = own_folder(Path(folder), argument="folder")
        self.retention = retention
        self._serial = 0
        (self.folder / READING).touch()  # now, as a full disk must not keep anybody from reading
        with self._locked(LOCK, alone=True) as alone:
            self.swept = sweep(self.folder) if alone else 0

    def paths(self) -> list[Path]:
        """Return the folders of all checkpoints, the newest first."""
        found = [path for path in self.folder.glob("*-step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_serial_of, reverse=True)

    def manifests(self) -> dict[int, tuple[Path, Manifest]]:
        """Return what is known of each checkpoint, by serial number; those that cannot be read are left out."""
        known = {}
        for path in self.paths():
            try:
                known[_serial_of(path)] = path, read_manifest(path)
            except ContractError:
                continue
        return known

    def best(self) -> list[Path]:
        """Return the folders of checkpoints with a metric, the best first."""
        known = self.manifests()
        return [known[m.serial][0] for m in self.retention.ranked([m for _, m in known.values()])]

    def next_serial(self) -> int:
        """Return a number that no checkpoint here has."""
        newest = self.paths()[:1]
        self._serial = 1 + max([self._serial, *map(_serial_of, newest)])
        return self._serial

    def path_for(self, manifest: Manifest) -> Path:
        """Return the folder of a checkpoint that is to be written."""
        tag = f"-{manifest.tag}" if manifest.tag else ""
        return self.folder / f"{manifest.serial:08d}-step-{manifest.step}{tag}"

    def prune(self) -> None:
        """Remove checkpoints that are not kept; those that cannot be read stay, for whoever wants to know why.

        While somebody reads here nothing is removed; the next call does it.
        """
        with self._locked(READING, alone=True) as alone:
            known = self.manifests() if alone else {}
            kept = self.retention.kept([manifest for _, manifest in known.values()])
            for serial, (path, _) in known.items():
                if serial not in kept:
                    remove_checkpoint(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep others from sweeping away what is written inside the block."""
        with self._locked(LOCK, alone=False):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others, in other processes too, from removing what is read inside the block.

        A folder that this process may only read has no lock to hold: what is removed under it is found by its digests.
        """
        if not os.access(self.folder, os.W_OK):
            yield
            return
        with self._locked(READING, alone=False):
            yield

    @contextmanager
    def _locked(self, name: str, *, alone: bool) -> Iterator[bool]:
        """Hold a lock of the folder, which the system frees when a process dies; Windows has none of this kind."""
        if sys.platform == "win32":
            yield True
            return
        with (self.folder / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
            except BlockingIOError:
                yield False
                return
            yield True


def _serial_of(path: Path) -> int:
    return int(path.name.partition("-")[0])
