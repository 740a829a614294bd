"""How far the tokens of a data set have been written, so that a process that was killed is gone on from.

Every so many batches the bytes written so far are brought to the disk, and then the note is: their number, and all that
is known of the rows that they are of. What a process wrote after its last note is cut off again.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.disk import write_text

FILE = "journal.json"
_EVERY = 16  # batches


class Journal:
    """The note of a folder of the cache that is being filled.

    Args:
        folder: which is the same only for the same rows, tokenizer, flags and code.
    """

    def __init__(self, folder: Path):
        self._file = folder / FILE
        self._batches = 0

    def begun(self, rows: Path) -> dict[str, Any] | None:
        """The note, or None where there is nothing to go on from.

        Args:
            rows: the file that was being written.
        """
        try:
            note: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            return note if rows.stat().st_size >= note["written"] else None
        except (OSError, ValueError, LookupError):
            return None

    def noting(self, known: Callable[[], dict[str, Any]]) -> Callable[[BinaryIO], bool]:
        """What is to be told of the file after every batch; says whether it has written the note.

        Args:
            known: gives all that is known of the rows that have been written, as plain data.
        """

        def told(file: BinaryIO) -> bool:
            self._batches += 1
            is_time = self._batches % _EVERY == 0
            if is_time:
                self.note(file, known())
            return is_time

        return told

    def note(self, file: BinaryIO, known: dict[str, Any]) -> None:
        """Writes the note."""
        file.flush()
        os.fsync(file.fileno())
        write_text(self._file, json.dumps({**known, "written": file.tell()}))

    def close(self) -> None:
        """All is written."""
        self._file.unlink(missing_ok=True)
