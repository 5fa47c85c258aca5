"""Commands that append to a stream on Redis and trim it, and what groups lost by that.

A stream is trimmed by who publishes, in one script with the counting: nobody else can tell afterwards what a group had not seen.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from esper.contracts.envelope import Envelope
from esper.services.oona.redis_fields import lost_key_of, to_fields
from esper.services.oona.redis_link import Command

_SLACK = 100
"""Messages beyond its length, or a tenth of that, that a stream may hold before it is trimmed, so that this costs little."""

_LONG_BYTES = 2_000
"""Of a body, on average: where redis-py's reading of an answer to each command costs about what the script would."""

_APPEND = """
local at = 2
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, last))
  at = last + 1
end
local length, longest, lost = redis.call('XLEN', KEYS[1]), tonumber(ARGV[1]), {}
if length - longest < math.min(SLACK, longest / 10) then return lost end

local function place(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(seq)
end
local gone = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(length - longest, 512))
for _, pairs in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for n = 1, #pairs, 2 do group[pairs[n]] = pairs[n + 1] end
  local ms, seq = place(group['last-delivered-id'])
  local count = 0
  for n = #gone, 1, -1 do
    local its_ms, its_seq = place(gone[n][1])
    if its_ms < ms or (its_ms == ms and its_seq <= seq) then break end
    count = count + 1
  end
  if count > 0 then
    redis.call('HINCRBY', KEYS[2], group['name'], count)
    lost[#lost + 1] = group['name']
    lost[#lost + 1] = count
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', length - #gone)
return lost
""".replace("SLACK", str(_SLACK))
"""Appends entries, each with the number of its names and values before it; trims the oldest, at most 512 at once, so that a
stream that was far too long holds up nobody; counts for each group those that were never handed out to it."""


def slack_of(longest: int) -> int:
    """Return by how much a stream may be longer before it is trimmed, at least 1."""
    return max(1, min(_SLACK, longest // 10))


def append_one(key: str, envelope: Envelope) -> Command:
    """Return the command that appends an envelope to a stream, and leaves trimming to another."""
    return ["XADD", key, "*", *to_fields(envelope)]


def append_and_trim(key: str, longest: int, envelopes: Sequence[Envelope]) -> list[Command]:
    """Return what appends envelopes in order, all or none, and trims the stream to about ``longest``.

    It is one script; where bodies are long, one transaction of a command for each and the script that then only trims,
    because a script costs Redis more than all the rest for each byte that it is given.
    """
    if sum(len(envelope.body) for envelope in envelopes) > _LONG_BYTES * len(envelopes):
        return [*(append_one(key, envelope) for envelope in envelopes), *append_and_trim(key, longest, ())]
    command: list[str | bytes | int] = ["EVAL", _APPEND, 2, key, lost_key_of(key), longest]
    for envelope in envelopes:
        fields = to_fields(envelope)
        command.append(len(fields))
        command += fields
    return [command]


def lost_in(answer: object) -> Mapping[str, int]:
    """Return by group how many messages were trimmed before the group saw them, by what the last command was answered."""
    if not isinstance(answer, list):
        return {}
    pairs = cast("list[bytes | int]", answer)
    return {cast("bytes", name).decode(): int(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True)}
