"""Clients that come at a fixed rate, whether the service keeps up or not."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.service.asking import Cut, Response, ask, message
from tests.service.running import good_request

PATIENCE_SECONDS = 120.0  # after which a client gives its server up


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it was sent and when its whole answer was there, in seconds since the start; 0: no answer."""

    sent: float
    ended: float
    status: int
    retry_after: float | None

    @property
    def seconds(self) -> float:
        """From the request to the end of its answer."""
        return self.ended - self.sent


@dataclass(frozen=True)
class OpenLoop:
    """Poisson arrivals at a service. `deadline` is asked for with each request, `request` makes its body."""

    url: str
    deadline: float
    seed: int = 1
    request: Callable[[], dict[str, object]] = good_request

    async def run(self, per_second: float, seconds: float, progress: Callable[[float], None]) -> list[Outcome]:
        """Send for so long, then wait for all answers."""
        draw = random.Random(self.seed)
        began, due = time.monotonic(), 0.0
        tasks = []
        # By the clock, not by sleeping from one to the next: a client that lags behind catches up.
        while (due := due + draw.expovariate(per_second)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            tasks.append(asyncio.create_task(self.one(began)))
            progress(time.monotonic() - began)
        return await asyncio.gather(*tasks)

    async def one(self, began: float) -> Outcome:
        """One request, sent now."""
        sent = time.monotonic() - began
        head, body = message(json.dumps(self.request()).encode(), {"Prefer": f"wait={self.deadline:g}"})
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await ask(self.url, head, body)
        except (Cut, OSError, TimeoutError):
            return Outcome(sent, time.monotonic() - began, 0, None)
        return Outcome(sent, time.monotonic() - began, answer.status, _retry_after(answer))


def _retry_after(answer: Response) -> float | None:
    value = answer.headers.get("retry-after")
    return None if value is None else float(value)
