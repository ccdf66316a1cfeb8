"""The checkpoints of a run: what stands in all of them, when the next is due, which could not be written."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from utils.training.checkpoint import save_checkpoint


class Saver:
    """Writes into ``folder``/weights. A full disk or a read-only folder costs the checkpoint, never the run.

    ``about`` stands in every checkpoint, beside what is handed to ``save``; ``minutes`` (0: never) lie
    between two saves of last.pt inside an epoch. The clock decides when to save, never what. ``confirm``
    raises where the run is another process's by now: then nothing is written.
    """

    def __init__(
        self, folder: Path, about: Mapping, *, minutes: float, confirm: Callable[[], None] = lambda: None
    ):
        self.folder, self._about, self._seconds = folder / "weights", about, 60 * minutes
        self._saved, self._confirm = time.monotonic(), confirm
        self._failed: set[str] = set()

    @property
    def failed(self) -> bool:
        """Whether a file is missing, or not the newest, because it could not be written."""
        return bool(self._failed)

    def lacks(self, name: str) -> bool:
        """Whether ``name`` is missing or not the newest."""
        return name in self._failed

    def miss(self, name: str) -> None:
        """Note that an earlier process could not write ``name``."""
        self._failed.add(name)

    @property
    def is_due(self) -> bool:
        """Whether last.pt is older than ``minutes``."""
        return bool(self._seconds) and time.monotonic() - self._saved >= self._seconds

    def save(self, name: str, content: Mapping) -> None:
        """Write a checkpoint; what prevents it is printed. What is not finite is a ``UserError``."""
        self.attempt(name, lambda: save_checkpoint(self.folder / name, {**self._about, **content}))
        if name == "last.pt":
            self._saved = time.monotonic()

    def attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write something else of the run; an ``OSError`` is printed, and remembered until it goes well."""
        self._confirm()
        try:
            write()
            self._failed.discard(what)
        except OSError as error:
            self._failed.add(what)
            reason = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
            print(f"warning: {what} is not saved, the run goes on: {reason}", file=sys.stderr)
