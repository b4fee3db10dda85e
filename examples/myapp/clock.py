"""How long this process has been running."""

import asyncio
import time
from collections.abc import AsyncIterator

import loom


class Clock(loom.Actor):
    """Tells its age."""

    def __init__(self) -> None:
        self.born = time.monotonic()

    def age(self) -> float:
        """Seconds since it was started, or restarted."""
        return round(time.monotonic() - self.born, 3)

    async def ticks(self, count: int, every_s: float = 1.0) -> AsyncIterator[float]:
        """Its age, `count` times: an asynchronous stream."""
        for _ in range(count):
            yield self.age()
            await asyncio.sleep(every_s)
