"""Whether the other machines of a run are still there.

The launcher of each machine counts up a number in the store where the machines meet (torch's TCPStore, which machine 0
keeps), and looks at the numbers of the others. torch itself would not know: where a machine or the network goes without
a word, no connection is closed, and the processes of the others wait for as long as they would for a slow one. Slow is
not gone: a launcher has nothing else to do, so its number rises however long its processes compute or wait.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.errors import UserError
from posttrain.meeting import PAGE, Meeting, own_address
from posttrain.stop import SIGNALS
from posttrain.terminal import say

BEAT = 3.0  # seconds between two numbers
SILENCE = 30.0  # seconds without a new one after which a machine is gone
GRACE = 10.0  # seconds in which what has ended elsewhere may end here by itself, with a message of its own
PATIENCE = 15.0  # seconds after which it is said who is waited for
LIMIT = 600.0  # seconds that machines wait for each other at the beginning: torch's own
FAILURES_PAGE = "cluster.md#when-something-fails"


class Heartbeat:
    """The numbers of all machines, and what they mean.

    Args:
        meeting: the machines.
        give_up: called, in a thread, with the reason why this machine cannot go on, and an exit code; does not return.
        was_asked: whether the run was asked to end, and so may.
    """

    def __init__(self, meeting: Meeting, give_up: Callable[[str, int], None], was_asked: Callable[[], bool]):
        self.meeting, self._give_up, self._was_asked = meeting, give_up, was_asked
        self._me = {
            "id": uuid.uuid4().hex,
            "name": socket.gethostname(),
            "address": own_address(meeting),
            "machines": meeting.machines,
            "processes": meeting.processes,
        }
        self._others = [rank for rank in range(meeting.machines) if rank != meeting.machine]
        self._store: Any = None
        self._answered = time.monotonic()  # when machine 0 has last answered
        self._closed: float | None = None  # since when it no longer takes calls
        self._about: dict[int, dict[str, Any]] = {}  # the machines that have come
        self._beats: dict[int, tuple[int, float]] = {}  # the number of each, and since when
        self._ends: dict[int, int] = {}  # exit codes of those that have told theirs
        self._is_judging = self._is_beating = True

    def start(self) -> None:
        """Joins the machines: on machine 0 in the background, since its store is yet to come; on another one before
        anything else, for it may find the rest of an earlier attempt there.

        Raises:
            UserError: another machine has this one's number, or none has number 0.
        """
        threading.Thread(target=self._tell_who_is_missing, daemon=True).start()
        if self.meeting.machine == 0:
            threading.Thread(target=self._join_in_background, daemon=True).start()
        else:
            self._join()
        threading.Thread(target=self._judge, daemon=True).start()

    # -- joining

    def _join_in_background(self) -> None:
        try:
            self._join()
        except UserError as error:
            self._give_up(str(error), 2)

    def _join(self) -> None:
        deadline = time.monotonic() + LIMIT
        while self._store is None:
            store = self._connect(deadline)
            with contextlib.suppress(RuntimeError):  # of the store of an earlier attempt, which ends
                holder = json.loads(store.compare_set(self._key("machine"), "", json.dumps(self._me)))
                if holder == self._me:
                    store.set(self._key("end"), "")
                    store.add(self._key("beat"), 1)
                    self._store = store
                else:
                    self._refuse_if_alive(store, holder)
        self._answered = time.monotonic()
        threading.Thread(target=self._beat, daemon=True).start()

    def _connect(self, deadline: float) -> Any:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        host, port = self.meeting.address, self.meeting.port
        limit = datetime.timedelta(seconds=2 * SILENCE)  # by then it is gone
        while True:
            try:
                # TCPStore would write a line for every try.
                socket.create_connection((host, port), timeout=2 * BEAT).close()
                return PrefixStore("posttrain", TCPStore(host, port, timeout=limit, wait_for_workers=False))
            except (OSError, RuntimeError) as error:
                if time.monotonic() > deadline:
                    raise UserError(self._who_is_missing(), PAGE) from error
                time.sleep(BEAT / 3)

    def _refuse_if_alive(self, store: Any, holder: Mapping[str, Any]) -> None:
        """Somebody has this machine's number: another machine by mistake, or this one in an attempt before, whose end
        the others are about to notice.

        Raises:
            UserError: it is alive.
        """
        before = store.add(self._key("beat"), 0)
        time.sleep(2 * BEAT)
        if store.add(self._key("beat"), 0) != before:
            raise UserError(
                f"--machine_rank {self.meeting.machine} is that of {_name(holder)}, which is at work at "
                f"{self.meeting.address}:{self.meeting.port}: give each machine a number of its own, and each run a "
                "--main_process_port of its own",
                PAGE,
            )

    def _tell_who_is_missing(self) -> None:
        time.sleep(PATIENCE)
        if self._is_beating and len(self._about) < len(self._others):
            say(f"posttrain: {self._who_is_missing()}")

    def _who_is_missing(self) -> str:
        place = f"{self.meeting.address}:{self.meeting.port}"
        if self._store is None and self.meeting.machine > 0:
            return (
                f"no answer from {place}, where machine 0 should be: has the command been started there, with "
                "--machine_rank 0, and is the port open?"
            )
        missing = [str(rank) for rank in self._others if rank not in self._about]
        which = f"machine{'s' * (len(missing) > 1)} {', '.join(missing)} of {self.meeting.machines}"
        return f"waiting for {which} to come to {place}"

    # -- the numbers

    def _key(self, kind: str, rank: int | None = None) -> str:
        return f"{kind}/{self.meeting.machine if rank is None else rank}"

    def _beat(self) -> None:
        while self._is_beating:
            try:
                self._store.add(self._key("beat"), 1)
                come = [rank for rank in self._others if rank in self._about or self._has_come(rank)]
                keys = [self._key(kind, rank) for rank in come for kind in ("machine", "end", "beat")]
                if keys:
                    self._take(come, [value.decode() for value in self._store.multi_get(keys)])
            except RuntimeError:  # its command has ended; that it does not answer is noticed before that is an error
                self._closed = time.monotonic()
                return
            self._answered = time.monotonic()
            time.sleep(BEAT)

    def _has_come(self, rank: int) -> bool:
        return bool(self._store.check([self._key("beat", rank)]))

    def _take(self, ranks: Sequence[int], values: Sequence[str]) -> None:
        now = time.monotonic()
        for rank, about, end, beat in zip(ranks, values[::3], values[1::3], values[2::3], strict=True):
            if int(beat) != self._beats.get(rank, (-1, now))[0]:
                self._beats[rank] = int(beat), now
            if end:
                self._ends[rank] = int(end)
            self._about[rank] = json.loads(about)

    def _judge(self) -> None:
        while self._is_judging:
            cause = self._cause(GRACE)
            if cause is not None and self._is_judging:
                self._give_up(cause, 1)
            time.sleep(1)

    def _cause(self, grace: float) -> str | None:
        """Why the run cannot go on, where that lies with another machine.

        Args:
            grace: seconds in which this machine may end by itself.
        """
        now = time.monotonic()
        is_answered = now - self._answered < SILENCE
        for rank, about in sorted(self._about.items()):
            who, silence, end = self._who(rank), now - self._beats[rank][1], self._ends.get(rank)
            different = [name for name in ("machines", "processes") if about[name] != self._me[name]]
            if different:
                flags = " and ".join(f"--num_{name} {about[name]}, here {self._me[name]}" for name in different)
                return f"{who} was started with {flags}"
            if end is None and silence > SILENCE and is_answered:
                return f"{who} is gone: no sign of life for {SILENCE:.0f} seconds"
            is_in_order = end is not None and end - 128 in SIGNALS and self._was_asked()
            if end and not is_in_order and silence > grace:
                return f"{who} has ended with exit code {end}; what was said there tells why"
        if self._closed is not None:
            is_over = now - self._closed > grace
            return f"{self._who(0)} is gone: its command has ended, or was killed" if is_over else None
        if self._store is not None and not is_answered:
            return f"{self._who(0)} is gone: it cannot be reached for {SILENCE:.0f} seconds"
        return None

    def _who(self, rank: int) -> str:
        return f"machine {rank} ({_name(self._about.get(rank, {'address': self.meeting.address}))})"

    # -- the end of this machine's processes

    def cause_of_failure(self) -> str | None:
        """Why processes of this machine have lost those of another; waits until that is known.

        Returns:
            The reason; None where all machines are there and at work.
        """
        self._is_judging = False
        began = now = time.monotonic()
        while now - began < SILENCE + 2 * BEAT:
            cause = self._cause(0)
            if cause is not None:
                return cause
            latest = [since for rank, (_, since) in self._beats.items() if rank not in self._ends]
            if self._closed is None and latest and min(latest) > began + BEAT:
                return None
            time.sleep(0.2)
            now = time.monotonic()
        return None

    def tell_end(self, code: int) -> None:
        """Tells the others that this machine's processes have ended.

        Args:
            code: its exit code.
        """
        self._is_judging = self._is_beating = False

        def tell() -> None:
            with contextlib.suppress(RuntimeError):
                self._store.set(self._key("end"), str(code))

        if self._store is not None and self._closed is None:
            thread = threading.Thread(target=tell, daemon=True)  # machine 0 may not answer
            thread.start()
            thread.join(2)
            if code and self.meeting.machine == 0:
                time.sleep(1.5 * BEAT)  # the others look at it once more


def _name(about: Mapping[str, Any]) -> str:
    return ", ".join(str(about[key]) for key in ("name", "address") if key in about)
