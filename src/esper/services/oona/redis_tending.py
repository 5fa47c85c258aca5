"""What a process does for the groups of a stream on Redis that nobody else does: it learns what its own has lost, and clears away
names of members and groups of runs that nobody has been seen under for long.
"""

import asyncio
from typing import TYPE_CHECKING, cast

from esper.contracts.groups import RUN_GROUPS
from esper.services.oona.redis_entry import GroupCounts
from esper.services.oona.redis_fields import lost_key_of, seen_key_of
from esper.services.oona.redis_link import Link
from esper.services.oona.redis_seat import Seat
from esper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from esper.services.oona.redis_config import RedisBusConfig

log = get_logger("oona.redis")

_LOOK_EVERY_S = 1.0
_SWEEP_EVERY_S = 60.0
_SWEEP = """
local function table_of(pairs)
  local found = {}
  for n = 1, #pairs, 2 do found[pairs[n]] = pairs[n + 1] end
  return found
end
local function holds(group)
  local begin = '-'
  while true do
    local rows = redis.call('XPENDING', KEYS[1], group, begin, '+', 100)
    for _, row in ipairs(rows) do
      if redis.call('XRANGE', KEYS[1], row[1], row[1])[1] then return true end
    end
    if #rows < 100 then return false end
    begin = '(' .. rows[#rows][1]
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[3], ARGV[1], now)
local forgotten, collected = 0, {}
for _, pairs in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group, kept = table_of(pairs)['name'], true
  if string.sub(group, 1, #ARGV[4]) == ARGV[4] then
    local seen = redis.call('HGET', KEYS[3], group)
    if not seen then
      redis.call('HSET', KEYS[3], group, now)
    elseif now - seen >= tonumber(ARGV[3]) and not holds(group) then
      redis.call('XGROUP', 'DESTROY', KEYS[1], group)
      redis.call('HDEL', KEYS[2], group)
      redis.call('HDEL', KEYS[3], group)
      collected[#collected + 1] = group
      kept = false
    end
  end
  for _, about in ipairs(kept and redis.call('XINFO', 'CONSUMERS', KEYS[1], group) or {}) do
    local member = table_of(about)
    if member['pending'] == 0 and member['idle'] >= tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, member['name'])
      forgotten = forgotten + 1
    end
  end
end
return {forgotten, collected}
"""
"""Notes that a group has a member, takes names from groups and destroys groups of runs, each in one step with looking, so that
nobody comes between. A name that holds messages stays, and so does a group that was handed a message which is still there:
somebody may go on with it. Members note themselves because Redis 7.0 shows none that waits for a message, and a name that is
taken from one comes back with its next message."""


class Tending:
    """Looks after the groups of one stream, now and then.

    Args:
        link: Where Redis is.
        seat: That of a member of one of the groups.
        config: How long nobody must have been seen.
        counts: Where it is noted what was lost and cleared away.
    """

    def __init__(self, link: Link, seat: Seat, config: "RedisBusConfig", counts: GroupCounts) -> None:
        self._link, self._seat, self._config, self._counts = link, seat, config, counts
        self._look_at = self._sweep_at = 0.0
        self._lost: int | None = None

    async def look(self) -> None:
        """Look, where it is time to."""
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        lost = await self._seat.lost()
        self._counts.lost += max(0, lost - (lost if self._lost is None else self._lost))
        self._lost = lost
        if now >= self._sweep_at:
            self._sweep_at = now + min(
                _SWEEP_EVERY_S, self._config.forget_after_s / 4, self._config.collect_after_s / 4
            )
            await self._sweep()

    async def _sweep(self) -> None:
        key, config = self._seat.place.key, self._config
        limits = (round(seconds * 1000) for seconds in (config.forget_after_s, config.collect_after_s))
        keys = (key, lost_key_of(key), seen_key_of(key))
        answer = await self._link.ask("EVAL", _SWEEP, 3, *keys, self._seat.place.group, *limits, RUN_GROUPS)
        forgotten, collected = cast("tuple[int, list[bytes]]", answer)
        self._counts.forgotten += forgotten
        self._counts.collected += len(collected)
        if forgotten or collected:
            groups = [group.decode() for group in collected]
            log.info("groups_swept", stream=self._seat.place.stream, forgotten=forgotten, collected=groups)
