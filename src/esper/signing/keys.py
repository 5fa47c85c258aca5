"""Keys that sign, and the ring of those that are trusted."""

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType

import msgspec

from esper.errors import ConfigError, Conflict, NotFound
from esper.runtime.files import write_whole

PUBLIC_BYTES = 32
_HEAD = b"esper-signing-key-1\n"


def fingerprint(public: bytes) -> bytes:
    """Return what a public key is known by in a signature."""
    return hashlib.sha256(public).digest()


def key_id_of(public: bytes) -> str:
    """Return what people call a public key."""
    return f"key-{fingerprint(public).hex()[:16]}"


class SigningKey:
    """A private Ed25519 key.

    Args:
        private: Its 32 bytes.

    Attributes:
        public: The public key, 32 bytes.
        key_id: What people call it.
    """

    def __init__(self, private: bytes) -> None:
        self._key = _ed25519().Ed25519PrivateKey.from_private_bytes(private)
        self._private = private
        self.public: bytes = self._key.public_key().public_bytes_raw()
        self.key_id = key_id_of(self.public)

    @classmethod
    def generate(cls) -> "SigningKey":
        """Return a fresh key, drawn from the system."""
        return cls(_ed25519().Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> "SigningKey":
        """Return the key in a file.

        Raises:
            ConfigError: If it cannot be read, holds no key, or others may read it.
        """
        try:
            others = stat.S_IMODE(path.stat().st_mode) & 0o077
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the signing key {path} cannot be read", why=str(error), code="ESP-2850") from error
        if os.name == "posix" and others:
            raise ConfigError(
                f"the signing key {path} is not safe",
                why="other users may read it",
                todo=f"chmod 600 {path}, and make a new one if they did",
                code="ESP-2851",
            )
        try:
            return cls(_unpacked(data))
        except ValueError as error:
            raise ConfigError(f"{path} holds no signing key", why=str(error), code="ESP-2850") from error

    def write(self, path: Path) -> None:
        """Write the key to a new file that nobody else may read.

        Raises:
            Conflict: If there is such a file.
            ConfigError: If it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise Conflict(f"there is a key {path} already", todo="name another file", code="ESP-6050") from error
        except OSError as error:
            raise ConfigError(f"the signing key {path} cannot be written", why=str(error), code="ESP-2850") from error
        with os.fdopen(handle, "wb") as file:
            file.write(_HEAD + base64.b64encode(self._private) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of bytes, 64 bytes long."""
        signature: bytes = self._key.sign(data)
        return signature

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


class Trusted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A public key that is, or was, trusted.

    Attributes:
        key_id: What people call it; follows from the key.
        public: The key, in base64.
        name: Whose it is.
        since: What says that it was signed earlier is refused; None for whenever.
        until: What says that it was signed later is refused, as another key took its place; None while it is in use.
        revoked: When it was revoked; nothing that it signed is trusted any more, whenever that was. None where it was not.
        why: Why it was revoked.
    """

    key_id: str
    public: str
    name: str
    since: datetime | None = None
    until: datetime | None = None
    revoked: datetime | None = None
    why: str = ""

    @property
    def in_use(self) -> bool:
        """Whether it was neither replaced nor revoked."""
        return self.until is None and self.revoked is None

    @property
    def key(self) -> bytes:
        """The public key, 32 bytes."""
        return base64.b64decode(self.public, validate=True)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: tuple[Trusted, ...]


@dataclass(frozen=True)
class KeyRing:
    """The keys that this machine trusts; a ring without keys trusts nobody.

    Attributes:
        keys: Every key that it knows, those that were replaced or revoked included.
    """

    keys: tuple[Trusted, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "KeyRing":
        """Return the ring in a file.

        Raises:
            ConfigError: If it cannot be read, is no ring, or others may write it.
        """
        try:
            mode, data = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the key ring {path} cannot be read", why=str(error), todo="write one with KeyRing.write",
                code="ESP-2852",
            ) from error  # fmt: skip
        if os.name == "posix" and stat.S_IMODE(mode) & 0o022:
            raise ConfigError(
                f"the key ring {path} is not safe",
                why="other users may write it",
                todo=f"look through it, then chmod 644 {path}",
                code="ESP-2851",
            )
        return cls(tuple(_checked(path, data)))

    def write(self, path: Path) -> None:
        """Write the ring, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(_File(1, self.keys)), indent=2) + b"\n")

    def find(self, print_: bytes) -> Trusted | None:
        """Return the key with a fingerprint, or None."""
        return next((known for known in self.keys if fingerprint(known.key) == print_), None)

    def named(self, key_id: str) -> Trusted:
        """Return a key by its id.

        Raises:
            NotFound: If it is not known.
        """
        for known in self.keys:
            if known.key_id == key_id:
                return known
        there = ", ".join(known.key_id for known in self.keys) or "it is empty"
        raise NotFound(f"no key {key_id} in the ring", why=f"there: {there}", code="ESP-5250")

    def trust(self, public: bytes, *, name: str, since: datetime | None = None) -> "KeyRing":
        """Return a ring that trusts one more key.

        Raises:
            Conflict: If it knows the key already; one that was revoked never comes back.
            ConfigError: If it is no key.
        """
        if len(public) != PUBLIC_BYTES:
            raise ConfigError(
                "this is no public key", why=f"it has {len(public)} bytes, not {PUBLIC_BYTES}", code="ESP-2853"
            )
        key_id = key_id_of(public)
        if self.find(fingerprint(public)) is not None:
            raise Conflict(f"{key_id} is in the ring already", todo="make a new key", code="ESP-6051")
        entry = Trusted(key_id=key_id, public=base64.b64encode(public).decode(), name=name, since=since)
        return replace(self, keys=(*self.keys, entry))

    def retire(self, key_id: str, *, now: datetime) -> "KeyRing":
        """Return a ring in which a key signs no more; what it signed until now stays trusted."""
        return self._with(key_id, until=now)

    def revoke(self, key_id: str, *, why: str, now: datetime) -> "KeyRing":
        """Return a ring in which nothing that a key ever signed is trusted: who has it can write any date."""
        return self._with(key_id, revoked=now, why=why)

    def _with(self, key_id: str, **changes: object) -> "KeyRing":
        changed = self.named(key_id)
        if changed.revoked is not None:
            raise Conflict(f"{key_id} was revoked already", why=changed.why, code="ESP-6052")
        entry = msgspec.structs.replace(changed, **changes)
        return replace(self, keys=tuple(entry if known is changed else known for known in self.keys))


def _checked(path: Path, data: bytes) -> Iterator[Trusted]:
    """Yield the keys in a file, each of them whole."""
    try:
        held = msgspec.json.decode(data, type=_File)
        for known in held.keys:
            times = [moment for moment in (known.since, known.until, known.revoked) if moment is not None]
            if len(known.key) != PUBLIC_BYTES or known.key_id != key_id_of(known.key):
                raise ValueError(f"{known.key_id} is not the id of its key")
            if any(moment.tzinfo is None for moment in times):
                raise ValueError(f"a time of {known.key_id} has no zone")
            yield known
        if held.version != 1:
            raise ValueError(f"it has version {held.version}, and this library knows 1")
    except (ValueError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} is no key ring", why=str(error), todo="restore it, or make a new one", code="ESP-2852"
        ) from error


def _unpacked(data: bytes) -> bytes:
    head, _, body = data.partition(b"\n")
    if head + b"\n" != _HEAD:
        raise ValueError("it does not begin like one")
    private = base64.b64decode(body.strip(), validate=True)
    if len(private) != PUBLIC_BYTES:
        raise ValueError(f"it has {len(private)} bytes, not {PUBLIC_BYTES}")
    return private


def verifies(public: bytes, signature: bytes, data: bytes) -> bool:
    """Tell whether a signature of bytes holds."""
    from cryptography.exceptions import InvalidSignature

    try:
        _ed25519().Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigError(
            "signatures cannot be made or checked",
            why="the package cryptography is not installed",
            todo='pip install "esper-morphogenesis[services]"',
            code="ESP-2854",
        ) from error
    return ed25519
