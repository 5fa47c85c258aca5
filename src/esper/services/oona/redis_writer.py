"""What a process writes to streams on Redis: it appends, trims, and counts what groups lost by that."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence

from esper.contracts.envelope import Envelope
from esper.errors import BusUnavailable
from esper.services.oona.codec import Codec
from esper.services.oona.losses import Losses
from esper.services.oona.redis_append import append_and_trim, append_one, lost_in, slack_of
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_fields import key_of
from esper.services.oona.redis_link import Command, Link
from esper.telemetry.bus_metrics import BusTimes

MOST_AT_ONCE = 256
"""Messages that are sent at once; Redis does nothing else while it appends them."""


class Writer:
    """Appends envelopes to streams, and trims those that are too long.

    Args:
        link: Where Redis is.
        codec: Knows how long declared streams may be.
        config: Limits.
        stop: Ends trying again.

    Attributes:
        times: How long things take, by stream.
        losses: Messages by stream and group that the group lost, as far as this process trimmed them or found them gone.
        longest: Messages that streams keep, where that was set for one.
    """

    def __init__(self, link: Link, codec: Codec, config: RedisBusConfig, stop: asyncio.Event) -> None:
        self._link, self._codec, self._config, self._stop = link, codec, config, stop
        self.times, self.losses = BusTimes(), Losses()
        self.longest: dict[str, int] = {}
        self._untrimmed: dict[str, int] = {}

    async def send(self, stream: str, envelopes: Sequence[Envelope]) -> None:
        """Append envelopes to a stream, again where the answer is lost: with the same ids then.

        Args:
            stream: Where to.
            envelopes: At most ``MOST_AT_ONCE``.

        Raises:
            BusUnavailable: If Redis did not answer for ``publish_limit_s``; they may be held nevertheless.
        """
        commands = self.append(stream, envelopes)
        began = time.perf_counter()
        ends_at = asyncio.get_running_loop().time() + self._config.publish_limit_s
        for attempt in itertools.count():
            try:
                if len(commands) == 1:
                    answer = await self._link.ask(*commands[0])
                else:
                    answer = (await self._link.ask_all(commands, at_once=True))[-1]
                self.note_lost(stream, answer)
                self.times[stream].publish.observe(time.perf_counter() - began)
                break
            except BusUnavailable:
                pause = random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 1.0)
                if self._stop.is_set() or asyncio.get_running_loop().time() + pause > ends_at:
                    raise
                await asyncio.sleep(pause)

    def append(self, stream: str, envelopes: Sequence[Envelope]) -> list[Command]:
        """Return what appends envelopes to a stream in one transaction; the first, and now and then another, trims it."""
        longest, key = self._longest_of(stream), key_of(stream)
        left = self._untrimmed.get(stream, 0) - len(envelopes)
        if len(envelopes) == 1 and left > 0:
            self._untrimmed[stream] = left
            return [append_one(key, envelopes[0])]
        self._untrimmed[stream] = slack_of(longest)
        return append_and_trim(key, longest, envelopes)

    def note_lost(self, stream: str, answer: object) -> None:
        """Count what was trimmed before groups saw it, by what the last command that ``append`` returned was answered."""
        for group, count in lost_in(answer).items():
            self.losses.add(stream, group, count)

    def _longest_of(self, stream: str) -> int:
        topic, longest = self._codec.topic(stream), self.longest.get(stream, self._config.max_length)
        return longest if topic is None else min(longest, topic.max_length)
