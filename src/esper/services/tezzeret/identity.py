"""Who a forge is: the key that it signs with, and the ring of those that it trusts, in one folder."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from esper.runtime.files import own_folder
from esper.signing.keys import KeyRing, SigningKey, Trusted

KEY_FILE, RING_FILE = "forge.key", "trusted.json"


@dataclass(frozen=True)
class Identity:
    """A forge's key and ring.

    Attributes:
        root: Their folder.
        key: The key, or None before there is one.
        ring: Whom it trusts; itself, and forges whose keys were added.
    """

    root: Path
    key: SigningKey | None
    ring: KeyRing

    @classmethod
    def at(cls, root: Path) -> "Identity":
        """Return who the forge of a folder is; nothing is written.

        Raises:
            ConfigError: If key or ring cannot be used, or others may read or write them.
        """
        key, ring = root / KEY_FILE, root / RING_FILE
        return cls(
            root,
            SigningKey.read(key) if key.exists() else None,
            KeyRing.read(ring) if ring.exists() else KeyRing(),
        )

    @classmethod
    def established(cls, root: Path, *, name: str, now: datetime) -> "Identity":
        """Return who the forge of a folder is, with a key made where it has none.

        Raises:
            ConfigError: If key or ring cannot be used, or others may read or write them.
        """
        found = cls.at(root)
        if found.key is None:
            found.renewed(name=name, now=now)
            found = cls.at(root)
        return found

    def renewed(self, *, name: str, now: datetime) -> Trusted:
        """Give the forge a fresh key; the one before signs no more, and what it signed stays trusted.

        The ring trusts the fresh key before the forge has it, so that a crash in between costs nothing.

        Returns:
            The fresh key, as the ring has it.
        """
        own_folder(self.root)
        fresh = SigningKey.generate()
        aside = self.root / f"{fresh.key_id}.key"
        fresh.write(aside)
        ring = self.ring.trust(fresh.public, name=name, since=now)
        if self.key is not None and any(known.key_id == self.key.key_id and known.in_use for known in ring.keys):
            ring = ring.retire(self.key.key_id, now=now)
        ring.write(self.root / RING_FILE)
        aside.replace(self.root / KEY_FILE)
        return ring.named(fresh.key_id)
