"""What can carry code is opened only where everything that its seal says holds."""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from esper.errors import ConfigError, Conflict, KernelRejected, NotFound
from esper.signing.keys import KeyRing, SigningKey, fingerprint
from esper.signing.manifest import Manifest, manifest_from_bytes, manifest_to_bytes
from esper.signing.sealed import HEAD, Made, Verified, seal, unseal

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = timedelta(days=1)
DATA = b"code, perhaps"
MADE = Made("aotinductor", "sha256:" + "1" * 64, "esper 0.1", "2.13.0", "cpu")
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
RING = KeyRing().trust(KEY.public, name="forge")
SEALED = seal(DATA, MADE, KEY, now=NOW)
MANIFEST_AT = len(HEAD) + 32 + 64


def opened(data: bytes = DATA, sealed: bytes = SEALED, ring: KeyRing = RING, *, kind: str = MADE.kind) -> Verified:
    return unseal(data, sealed, ring, kind=kind, now=NOW + DAY)


def test_what_was_sealed_is_opened_with_what_its_signer_says() -> None:
    found = opened()
    assert found.data == DATA
    assert (found.manifest.kind, found.manifest.size, found.manifest.created) == (MADE.kind, len(DATA), NOW)
    assert dataclasses.asdict(MADE).items() <= msgspec.structs.asdict(found.manifest).items()
    with found.placed("model.pt2") as path:
        assert path.read_bytes() == DATA
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()


@pytest.mark.parametrize("field", Manifest.__struct_fields__)
def test_each_field_that_was_changed_after_signing_is_refused(field: str) -> None:
    manifest = manifest_from_bytes(SEALED[MANIFEST_AT:])
    value = getattr(manifest, field)
    changed: object = value + DAY if isinstance(value, datetime) else value * 2
    tampered = manifest_to_bytes(msgspec.structs.replace(manifest, **{field: changed}))
    with pytest.raises(KernelRejected, match="ESP-7253"):
        opened(sealed=SEALED[:MANIFEST_AT] + tampered)


def test_every_flipped_bit_of_a_seal_is_refused() -> None:
    for at in range(len(SEALED)):
        flipped = SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :]
        with pytest.raises(KernelRejected):
            opened(sealed=flipped)


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"!", DATA.replace(b"code", b"Code")])
def test_other_bytes_than_those_that_were_signed_are_refused(data: bytes) -> None:
    with pytest.raises(KernelRejected, match="ESP-7258"):
        opened(data)


@pytest.mark.parametrize("sealed", [b"", b"x" * 500, HEAD, SEALED[:MANIFEST_AT], SEALED + b" " * 20_000])
def test_what_is_no_seal_is_refused(sealed: bytes) -> None:
    with pytest.raises(KernelRejected, match="ESP-7251"):
        opened(sealed=sealed)


def test_bytes_are_loaded_as_nothing_but_what_they_were_signed_as() -> None:
    with pytest.raises(KernelRejected, match=r"ESP-7256.*aotinductor"):
        opened(kind="torchscript")
    with pytest.raises(KernelRejected, match="ESP-7257"):
        Verified(object(), manifest_from_bytes(SEALED[MANIFEST_AT:]), DATA)


def test_a_key_that_is_not_trusted_signs_for_nobody() -> None:
    with pytest.raises(KernelRejected, match="ESP-7252"):
        opened(ring=KeyRing())
    with pytest.raises(KernelRejected, match="ESP-7252"):
        opened(sealed=seal(DATA, MADE, OTHER, now=NOW))
    borrowed = HEAD + fingerprint(KEY.public) + seal(DATA, MADE, OTHER, now=NOW)[len(HEAD) + 32 :]
    with pytest.raises(KernelRejected, match="ESP-7253"):
        opened(sealed=borrowed)


def test_a_key_that_was_replaced_holds_for_what_it_signed_before() -> None:
    ring = RING.trust(OTHER.public, name="forge, new").retire(KEY.key_id, now=NOW + timedelta(hours=1))
    assert opened(ring=ring).data == DATA
    assert opened(sealed=seal(DATA, MADE, OTHER, now=NOW + 0.9 * DAY), ring=ring).data == DATA
    with pytest.raises(KernelRejected, match=r"ESP-7255.*replaced"):
        opened(sealed=seal(DATA, MADE, KEY, now=NOW + 0.9 * DAY), ring=ring)


def test_a_key_that_was_revoked_holds_for_nothing_and_never_comes_back() -> None:
    ring = RING.revoke(KEY.key_id, why="a laptop was lost", now=NOW + DAY)
    with pytest.raises(KernelRejected, match=r"ESP-7254.*laptop"):
        opened(ring=ring)
    with pytest.raises(Conflict, match="ESP-6051"):
        ring.trust(KEY.public, name="forge")
    with pytest.raises(Conflict, match="ESP-6052"):
        ring.retire(KEY.key_id, now=NOW)
    with pytest.raises(NotFound, match="ESP-5250"):
        ring.retire("key-0", now=NOW)


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(KernelRejected, match=r"ESP-7255.*future"):
        opened(sealed=seal(DATA, MADE, KEY, now=NOW + 2 * DAY))
    with pytest.raises(KernelRejected, match=r"ESP-7255.*since"):
        opened(ring=KeyRing().trust(KEY.public, name="forge", since=NOW + 0.5 * DAY))


def test_keys_and_rings_are_kept_in_files_that_only_their_owner_changes(tmp_path: Path) -> None:
    private, ring = tmp_path / "forge.key", tmp_path / "trusted.json"
    KEY.write(private)
    RING.revoke(KEY.key_id, why="x", now=NOW).write(ring)
    assert SigningKey.read(private).public == KEY.public
    assert KeyRing.read(ring) == RING.revoke(KEY.key_id, why="x", now=NOW)
    assert KEY._private.hex() not in repr(KEY)
    with pytest.raises(Conflict, match="ESP-6050"):
        KEY.write(private)
    private.chmod(0o644)
    ring.chmod(0o666)
    for read in (lambda: SigningKey.read(private), lambda: KeyRing.read(ring)):
        with pytest.raises(ConfigError, match="ESP-2851"):
            read()


@pytest.mark.parametrize("text", ["", "{}", '{"version":2,"keys":[]}', '{"version":1,"keys":[{"key_id":"key-0"}]}'])
def test_a_ring_that_is_none_trusts_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trusted.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="ESP-2852"):
        KeyRing.read(path)
