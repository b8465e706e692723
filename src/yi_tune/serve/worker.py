"""The thread that makes the replies of `serve`. It takes the engine's Assistant, and imports no torch itself."""

import threading
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING

from yi_tune.sampling import Generation

if TYPE_CHECKING:
    from yi_tune.engine.assistant import Assistant


class Worker:
    """Makes up to `max_batch` replies at once, the tuned model's and the base's; up to `max_waiting` more wait."""

    def __init__(self, assistant: "Assistant", max_batch: int, max_waiting: int) -> None:
        self.context, self.encode = assistant.context, assistant.encode
        self._assistant = assistant
        self._max_batch, self._capacity = max_batch, max_batch + max_waiting
        self._asked: list[Generation] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="worker")
        self._thread.start()

    def counts(self) -> tuple[int, int]:
        """How many replies are being made, and how many wait their turn."""
        begun = [one.begun for one in self._wanted()]
        return sum(begun), len(begun) - sum(begun)

    def submit(self, generation: Generation) -> bool:
        """Begin it as soon as there is room. Returns False when as many are made and wait as the server takes."""
        with self._changed:
            self._asked = self._wanted()
            if taken := not self._closing and len(self._asked) < self._capacity:
                self._asked.append(generation)
                self._changed.notify()
            return taken

    def close(self) -> None:
        """End what is running. The model goes when this object does."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _wanted(self) -> list[Generation]:
        return [one for one in self._asked if not one.over]

    def _work(self) -> None:
        batches = {base: self._assistant.batch() for base in (False, True)}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted())
                if self._closing:
                    break
                new = [one for one in self._wanted() if not one.begun][: self._max_batch - self.counts()[0]]
                for one in new:
                    one.begun = True
            for base, batch in batches.items():
                joining = [one for one in new if one.base == base]
                if not joining and not batch.rows:  # to turn an adapter off takes as long as some tokens
                    continue
                try:
                    with self._assistant.base() if base else nullcontext():
                        if joining:
                            batch.add(joining)
                        batch.step()
                except Exception:  # of memory, for one: whoever is in this batch is told, the server goes on
                    traceback.print_exc()
                    batches[base] = self._assistant.batch()
                    for one in {*batch.rows, *joining}:
                        one.fail()
        for one in self._wanted():
            one.fail()
