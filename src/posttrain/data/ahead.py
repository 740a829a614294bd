"""What comes next, made while what is there is used."""

import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Coming(Generic[Thing]):
    """The next of an iterator's things, which a thread is making.

    Args:
        things: never ending; nobody else asks for one meanwhile.
    """

    def __init__(self, things: Iterator[Thing]):
        self._things = things
        self._made: list[Thing] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._make, name="posttrain-stream", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._made.append(next(self._things))
        except Exception as error:
            self._error = error

    def result(self) -> Thing:
        """Waits for it; raises what its making has raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made[0]
