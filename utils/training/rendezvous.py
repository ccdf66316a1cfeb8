"""Where the ranks of a run meet: a store that holds nothing of those who were there before them."""

import time
import uuid
from datetime import timedelta

from torch import distributed
from torch.distributed.rendezvous import rendezvous

PAUSE = 0.01  # seconds between two looks


def meet(patience: timedelta) -> tuple[distributed.Store, int, int]:
    """A store for these processes alone, this one's rank, and their number, by torchrun's variables.

    torchrun keeps one store for all lives of a job (``--max-restarts``), where the addresses of an earlier
    life would be taken for those of this one; and nothing tells the lives apart on all machines alike.
    So each rank says a word that nobody has said before, and rank 0 answers every word with the name of a new
    part of the store, until all have heard it. Who does not come within ``patience`` is a ``DistStoreError``.
    """
    store, rank, count = next(rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    own = uuid.uuid4().hex
    if rank:
        store.set(f"ltrb/word/{rank}", own)
        name = store.get(f"ltrb/answer/{own}").decode()
        store.set(f"ltrb/heard/{name}/{rank}", "")
    else:
        name = own
        _answer(store, name, set(range(1, count)), end=time.monotonic() + patience.total_seconds())
    return distributed.PrefixStore(f"ltrb/{name}", store), rank, count


def _answer(store: distributed.Store, name: str, missing: set[int], *, end: float) -> None:
    """Tell ``name`` to the ranks that are ``missing``; words of earlier lives get an answer, too."""
    while missing:
        for rank in filter(lambda rank: store.check([f"ltrb/word/{rank}"]), missing):
            store.set(f"ltrb/answer/{store.get(f'ltrb/word/{rank}').decode()}", name)
        time.sleep(PAUSE)
        missing = {rank for rank in missing if not store.check([f"ltrb/heard/{name}/{rank}"])}
        if missing and time.monotonic() > end:
            raise distributed.DistStoreError(f"timed out waiting for ranks {sorted(missing)}")
