"""Messages to bytes and back, in one envelope."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import msgspec
from pydantic import BaseModel, ValidationError

from esper.contracts.envelope import DeadLetter, Envelope
from esper.contracts.ids import MessageId, new_message_ids
from esper.contracts.topics import TOPICS, Message, Topic
from esper.errors import ContractError
from esper.telemetry.tracing import traceparent

PLAIN = "dict"
"""The type of an envelope whose body is plain data."""

DEAD_SUFFIX = ".dead"
"""The stream of the dead letters of ``S`` is ``S.dead``."""

_INT_RANGE = range(-(2**63), 2**64)
_SCALARS = frozenset((type(None), bool, float, str, bytes))
_FLAT = _SCALARS | {int}
_MAX_DEPTH = 64

Contract = type[msgspec.Struct] | type[BaseModel]

_packed = msgspec.msgpack.Encoder().encode
_plain_of = msgspec.msgpack.Decoder(dict[str, object]).decode
_envelope_of = msgspec.msgpack.Decoder(Envelope).decode
_envelopes_of = msgspec.msgpack.Decoder(list[Envelope]).decode


class _Head(msgspec.Struct, frozen=True, gc=False):
    """What is equal in envelopes that are sealed together."""

    stream: str
    topic: Topic | None
    run_id: str | None
    sent_at: datetime
    traceparent: str | None


class Codec:
    """Encodes messages for the streams that are declared, and plain dictionaries for every other stream.

    A dictionary that is sent to a declared stream must keep the contract of that stream, and arrives as that contract: a
    field that the contract does not know is refused at the sender, and passed over at the reader, who may be older.
    On any other stream a dictionary arrives as an equal one, and a contract that is known by name arrives as itself.

    Args:
        topics: Declared streams by name.
    """

    def __init__(self, topics: Mapping[str, Topic] = TOPICS) -> None:
        self._topics = topics
        contracts: dict[str, tuple[Contract, int]] = {t.model.__name__: (t.model, t.version) for t in topics.values()}
        contracts[DeadLetter.__name__] = (DeadLetter, 1)
        self._parsers = {name: (_parser(model), version) for name, (model, version) in contracts.items()}
        self._kinds: dict[type, tuple[str, int]] = {
            model: (name, version) for name, (model, version) in contracts.items()
        }
        self._kinds[dict] = (PLAIN, 1)

    def topic(self, stream: str) -> Topic | None:
        """Return what is declared about a stream, or None."""
        return self._topics.get(stream)

    def seal(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> Envelope:
        """Put a message into an envelope.

        Args:
            stream: Where it will be sent.
            message: A contract, or plain data.
            run_id: The run that it belongs to.
            message_id: The id that it was sent under before; otherwise it gets a fresh one.

        Returns:
            The envelope; the message is not changed and not kept.

        Raises:
            ContractError: If the message does not keep the stream's contract, or cannot be sent at all.
        """
        head = _Head(stream, self._topics.get(stream), run_id, datetime.now(UTC), traceparent())
        return self._sealed(message, message_id or new_message_ids(1)[0], head)

    def seal_all(self, stream: str, messages: Sequence[Message], *, run_id: str | None = None) -> list[Envelope]:
        """Put messages into envelopes with fresh ids, as ``seal`` does; where one is refused, all are."""
        head = _Head(stream, self._topics.get(stream), run_id, datetime.now(UTC), traceparent())
        ids = new_message_ids(len(messages))
        return [self._sealed(message, id, head) for message, id in zip(messages, ids, strict=True)]

    def _sealed(self, message: Message, message_id: MessageId, head: "_Head") -> Envelope:
        checked = message if head.topic is None else _as_declared(head.topic, message)
        name, version = self._kinds.get(type(checked)) or _refuse_kind(checked, head.stream)
        return Envelope(
            type=name, version=version, id=message_id, run_id=head.run_id, sent_at=head.sent_at,
            traceparent=head.traceparent, body=_body(checked, head.stream),
        )  # fmt: skip

    def open(self, envelope: Envelope) -> Message:
        """Return the message in an envelope; fields that its contract does not know are passed over.

        Raises:
            ContractError: If the contract is not known, is newer than this library, or is broken.
        """
        try:
            return _plain_of(envelope.body) if envelope.type == PLAIN else self._parsed(envelope)
        except (msgspec.DecodeError, ValidationError) as error:
            raise ContractError(f"message {envelope.id} breaks its contract {envelope.type}", why=str(error)) from error

    def _parsed(self, envelope: Envelope) -> Message:
        parse, version = self._parsers.get(envelope.type, (None, 0))
        if parse is None or envelope.version > version:
            raise ContractError(
                f"message {envelope.id} cannot be read",
                why=f"this library knows version {version} of {envelope.type}, not {envelope.version}",
                todo="bring every part to the same version",
            )
        return parse(envelope.body)


def packed(envelope: Envelope) -> bytes:
    """Return the bytes of an envelope, as they are stored and sent."""
    return _packed(envelope)


def packed_together(envelopes: Sequence[Envelope]) -> bytes:
    """Return the bytes of several envelopes, as they are stored together."""
    return _packed(envelopes)


def unpacked(data: bytes) -> Envelope:
    """Return the envelope in bytes.

    Raises:
        ContractError: If they are not one.
    """
    try:
        return _envelope_of(data)
    except msgspec.DecodeError as error:
        raise ContractError("these bytes are no envelope", why=str(error)) from error


def unpacked_together(data: bytes) -> list[Envelope]:
    """Return the envelopes that were packed together.

    Raises:
        ContractError: If the bytes are something else.
    """
    try:
        return _envelopes_of(data)
    except msgspec.DecodeError as error:
        raise ContractError("these bytes are no envelopes", why=str(error)) from error


def _refuse_kind(message: Message, stream: str) -> NoReturn:
    if isinstance(message, dict):
        _check_plain(message, "$", stream, _MAX_DEPTH)  # it is of a class of its own, and would arrive as another
    raise ContractError(
        f"a {type(message).__name__} cannot be sent",
        why="no topic declares that contract, so that no reader could parse it",
        todo="declare it in esper.contracts.topics, or send a dictionary",
    )


def _as_declared(topic: Topic, message: Message) -> Message:
    if isinstance(message, topic.model):
        return message
    if not isinstance(message, dict):
        raise ContractError(
            f"a {type(message).__name__} cannot be sent to {topic.stream}",
            why=f"its contract is {topic.model.__name__}",
        )
    try:
        checked = _converted(message, topic.model)
    except (msgspec.ValidationError, ValidationError) as error:
        raise ContractError(
            f"the data do not keep the contract {topic.model.__name__} of {topic.stream}", why=str(error)
        ) from error
    for place in _unknown(message, _builtins(checked), "$"):
        raise ContractError(
            f"the data for {topic.stream} hold {place}, which {topic.model.__name__} does not know",
            why="no reader would see it",
            todo="correct its name, or add the field to the contract",
        )
    return checked


def _converted(message: dict[str, object], model: Contract) -> msgspec.Struct | BaseModel:
    if issubclass(model, BaseModel):
        return model.model_validate(message)
    return msgspec.convert(message, model, strict=False)


def _builtins(message: msgspec.Struct | BaseModel) -> object:
    return message.model_dump() if isinstance(message, BaseModel) else msgspec.to_builtins(message)


def _unknown(sent: object, kept: object, path: str) -> Iterator[str]:
    """Yield the places in what was sent that the contract has not kept."""
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        for name, value in sent.items():
            if name not in kept:
                yield f"{path}.{name}"
            else:
                yield from _unknown(value, kept[name], f"{path}.{name}")
    elif isinstance(sent, list | tuple) and isinstance(kept, list | tuple):
        for index, (value, held) in enumerate(zip(sent, kept, strict=False)):
            yield from _unknown(value, held, f"{path}[{index}]")


def _parser(model: Contract) -> Callable[[bytes], Message]:
    """Return what reads a contract from the body of an envelope."""
    if issubclass(model, BaseModel):
        return lambda body: model.model_validate(msgspec.msgpack.decode(body))
    return msgspec.msgpack.Decoder(model).decode


def _body(message: Message, stream: str) -> bytes:
    try:
        if not isinstance(message, dict):
            return _packed(message.model_dump() if isinstance(message, BaseModel) else message)
        for key, value in message.items():  # most hold nothing that has to be looked into
            if type(key) is not str or type(value) not in _FLAT:
                _check_plain(message, "$", stream, _MAX_DEPTH)
                break
        return _packed(message)
    except (TypeError, OverflowError, UnicodeEncodeError, msgspec.EncodeError) as error:
        if isinstance(message, dict):
            _check_plain(message, "$", stream, _MAX_DEPTH)  # knows where an integer is too large
        raise ContractError(f"a {type(message).__name__} cannot be sent to {stream}", why=str(error)) from error


def _check_plain(value: object, path: str, stream: str, depth: int) -> None:
    """Refuse whatever would arrive as something else: tuples, sets, naive times, subclasses, keys that are not text."""
    if type(value) is dict and depth:
        for key, held in value.items():
            if type(key) is not str:
                _refuse_plain(key, f"{path}.{key!r}", stream, "a key that is not text")
            _check_plain(held, f"{path}.{key}", stream, depth - 1)
    elif type(value) is list and depth:
        for index, held in enumerate(value):
            _check_plain(held, f"{path}[{index}]", stream, depth - 1)
    elif not _is_scalar(value):
        _refuse_plain(value, path, stream, f"a {type(value).__name__} that would not arrive as it was sent")


def _is_scalar(value: object) -> bool:
    if type(value) is int:
        return value in _INT_RANGE
    if isinstance(value, datetime):
        return value.tzinfo is not None
    return type(value) in _SCALARS


def _refuse_plain(value: object, path: str, stream: str, what: str) -> None:
    raise ContractError(
        f"the data for {stream} hold {what} at {path}",
        why=f"it is {str(value)[:60]!r}",
        todo="send None, bool, 64-bit int, float, str, bytes, times with a zone, and lists and dictionaries (text keys) "
        f"of them, at most {_MAX_DEPTH} deep",
    )
