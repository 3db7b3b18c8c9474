"""Clients that come whether the service keeps up or not, each written down with how it ended."""

import asyncio
import base64
import json
import random
from itertools import count

from tests.chaos.kind import Kind, good_body
from tests.chaos.kinds import images, kinds, patience
from tests.chaos.lives import Lives
from tests.chaos.records import Record, Sheet
from tests.service.asking import Cut, Response, ask, message

GRACE_SECONDS = 10.0  # after a deadline, until a client gives its server up
ERROR_BYTES = 4096  # that the body of an error has at most
LEAVES_SECONDS = (0.05, 1.0)


class Traffic:
    """Sends requests to whichever server lives, at times that do not depend on it."""

    def __init__(self, lives: Lives, sheet: Sheet, draw: random.Random, deadline: float) -> None:
        self._lives = lives
        self._sheet = sheet
        self._draw = draw
        self._deadline = deadline
        self._kinds = {kind.name: kind for kind in kinds()}
        self._bodies = [good_body(index, image) for index, image in enumerate(images())]
        self._right: dict[int, bytes] = {}
        self._numbers = count(1)
        self._under_way: set[asyncio.Task[None]] = set()

    async def learn(self) -> None:
        """Ask a server without faults for every image: these bytes are right from now on."""
        for index, body in enumerate(self._bodies):
            answer = await ask(self._lives.current.service.url, *message(body))
            assert answer.status == 200, answer.body
            self._right[index] = _image(answer)

    async def run(self, per_second: float, until: float) -> None:
        """Poisson arrivals of all kinds."""
        weights = [kind.weight for kind in self._kinds.values()]
        while (pause := self._draw.expovariate(per_second)) + self._lives.now < until:
            await asyncio.sleep(pause)
            self.send(self._draw.choices(list(self._kinds), weights)[0])

    def send(self, name: str, times: int = 1) -> list["asyncio.Task[None]"]:
        """Send requests of a kind at once."""
        tasks = [asyncio.create_task(self._one(self._kinds[name])) for _ in range(times)]
        for task in tasks:
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return tasks

    async def ended(self) -> None:
        """Wait for those that are under way; each gives up by itself."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _one(self, kind: Kind) -> None:
        index, life = self._draw.randrange(len(self._bodies)), self._lives.current
        record = Record(next(self._numbers), kind.name, life.number, self._lives.now, patience(kind, self._deadline))
        record.counts = kind.counted
        self._sheet.requests.append(record)
        body = self._bodies[index] if kind.body is None else kind.body
        limit = self._draw.uniform(*LEAVES_SECONDS) if kind.leaves else record.patience + 2 * GRACE_SECONDS
        try:
            async with asyncio.timeout(limit):
                answer = await ask(life.service.url, *message(body, kind.headers, kind.path), kind.manner, kind.source)
            self._judge(record, index if kind.body is None else kind.image, answer)
        except TimeoutError:
            record.outcome = "left" if kind.leaves else "no answer"
        except Cut as error:
            record.outcome, record.detail = "cut", str(error)
        except ConnectionRefusedError:
            record.outcome = "unreachable"
        except OSError as error:
            record.outcome, record.detail = "cut", f"while connecting: {error}"
        record.ended = self._lives.now

    def _judge(self, record: Record, index: int | None, answer: Response) -> None:
        record.name, record.seconds = answer.headers.get("x-request-id", ""), answer.seconds
        if answer.rest:
            record.outcome, record.detail = "two answers", repr(answer.rest[:200])
        elif answer.status == 200:
            right = index is None or self._is_right(index, answer)
            record.outcome, record.counted = "done" if right else "wrong image", "done"
        else:
            self._judge_problem(record, answer)
        if not record.counts:
            record.counted = None

    def _is_right(self, index: int, answer: Response) -> bool:
        return json.loads(answer.body)["request_id"] == index and _image(answer) == self._right[index]

    def _judge_problem(self, record: Record, answer: Response) -> None:
        problem = json.loads(answer.body)
        record.detail = problem["detail"]
        if len(answer.body) > ERROR_BYTES:
            record.outcome = "long error"
        elif (kind := problem.get("type")) is None:  # AUTOMATIC1111's errors have none
            record.outcome = str(answer.status)
        else:
            record.outcome = kind.rpartition(":")[2]
            # What is refused as a connection is counted so, and its request as one whose client has left.
            record.counted = None if record.outcome == "request-timeout" else record.outcome
        if record.outcome == "busy" and not answer.headers.get("retry-after", "").isdecimal():
            record.outcome = "busy without Retry-After"


def _image(answer: Response) -> bytes:
    return base64.b64decode(json.loads(answer.body)["output_image_base64"], validate=True)
