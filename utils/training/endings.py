"""How one of several ranks ends: the error of the one that failed comes first, then a line of each other.

Ranks tell each other through the store in which torchrun introduced them, which outlives any of them. A rank
that was killed tells nothing: the others find it missing.
"""

import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import distributed

from utils.errors import OUR_FAULT, UserError

GRACE = 2.0  # seconds: whoever did not fail speaks, and leaves, that much after the one who did
LAST_ALARM = 20  # seconds that a rank may take to leave once it has failed
_PARTNER = re.compile(  # what gloo, NCCL and the store say of a partner that is gone or does not answer
    r"Connection (?:closed|reset|refused)[\w ]*|Broken pipe|failed to pass monitoredBarrier in \d+ ms.*"
    r"|[Tt]imed? ?out[\w ]*|ncclRemoteError|recvValue failed|[Ff]ailed to recv"
)


@contextmanager
def explained() -> Iterator[None]:
    """Whatever ends this rank inside is printed before it leaves its groups, so before the others notice.

    A partner that is gone or does not answer becomes a ``UserError`` of one line, ``GRACE`` seconds later. A
    ``UserError`` gets the rank's number; where rank 0 says the same, it alone does. Anything else shows its
    traceback here and ends with code 1. From then on the process has ``LAST_ALARM`` seconds: leaving a group
    whose other ranks are gone may hang. Until then it hears no other signal, as torchrun sends SIGTERM at
    once to those that still have to speak. In a run of one process nothing is changed.
    """
    try:
        yield
    except Exception as error:
        if not distributed.is_initialized():
            raise
        _speak_undisturbed()
        ending = _ending_of(error)
        traceback.clear_frames(error.__traceback__)  # they may hold a wrapped model: see distributed.stop
        raise ending from None


def reason_of(error: Exception) -> str:
    """What ``error`` says of a partner that is gone or does not answer; '' for errors of another kind."""
    text = str(error)
    collective = isinstance(error, distributed.DistError) or "gloo" in text or "monitoredBarrier" in text
    found = _PARTNER.search(text) if collective and isinstance(error, RuntimeError) else None
    return found.group().strip() if found else ""


def _speak_undisturbed() -> None:
    for name, handler in (("TERM", signal.SIG_IGN), ("INT", signal.SIG_IGN), ("ALRM", signal.SIG_DFL)):
        if number := getattr(signal, f"SIG{name}", None):
            signal.signal(number, handler)
    if hasattr(signal, "alarm"):
        signal.alarm(LAST_ALARM)


def _ending_of(error: Exception) -> UserError | SystemExit:
    """The exception with which this rank ends, once the others can know of it."""
    rank = distributed.get_rank()
    if isinstance(error, UserError):
        _tell(str(error))
        if rank and _hear(0) == str(error):
            return SystemExit(error.code)
        return UserError(f"rank {rank}: {error}", error.code) if rank else error
    if reason := reason_of(error):
        _tell("")
        time.sleep(GRACE)
        return UserError(_describe_loss(rank, reason), OUR_FAULT)
    sys.excepthook(type(error), error, error.__traceback__)  # torch's, which names the rank in each line
    _tell(repr(error))
    _record(error)
    return SystemExit(OUR_FAULT)


def _describe_loss(rank: int, reason: str) -> str:
    """Names the ranks that failed; else those of which nothing is heard, though their partners gave up."""
    told = _told()
    others = [other for other in range(distributed.get_world_size()) if other != rank]
    lost = [other for other in others if told.get(other)] or [other for other in others if other not in told]
    who = f"rank {lost[0]} is" if len(lost) == 1 else f"ranks {', '.join(map(str, lost))} are"
    if len(lost) > 1 and not told:  # the store is gone, too
        who = "another rank is"
    return (
        f"rank {rank}: {who} gone or stuck ({reason}): the error, if there was time for one, stands above or "
        "in the log of that rank; a training goes on from its last checkpoint with --resume"
    )


def _record(error: Exception) -> None:
    """For torchrun's summary, which shows the traceback of whichever rank failed first."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


# the store


def _tell(text: str) -> None:
    """Leave word that this rank ends: with what error, or '' where it is only left behind."""
    with suppress(RuntimeError):  # the store has gone with the process that held it
        _store().set(_key(distributed.get_rank()), text)


def _told() -> dict[int, str]:
    """The words of the ranks that left one; none at all, not even this rank's, where the store is gone."""
    found, store = {}, _store()
    try:
        for rank in range(distributed.get_world_size()):
            if store.check([_key(rank)]):
                found[rank] = store.get(_key(rank)).decode()
    except RuntimeError:
        return {}
    return found


def _hear(rank: int) -> str | None:
    """What ``rank`` says within ``GRACE``."""
    end = time.monotonic() + GRACE
    while (told := _told()).get(rank) is None and time.monotonic() < end:
        time.sleep(GRACE / 20)
    return told.get(rank)


def _store() -> distributed.Store:
    return distributed.distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"ltrb/ended/{rank}"
