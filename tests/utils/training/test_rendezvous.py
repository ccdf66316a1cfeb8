"""Where ranks meet: each life of a job by itself, though torchrun's store remembers the ones before."""

import threading
from datetime import timedelta

import pytest
from torch import distributed

from tests.ranks import run_text
from utils.training import rendezvous
from utils.training.rendezvous import meet

LIFE = """
import os, sys, time, torch
from utils.training import distributed as d

if os.environ["RANK"] == sys.argv[1]:
    time.sleep(0.5)  # so that the other finds what was left there
d.start(torch.device("cpu"))
print(d.gather(os.getpid()), flush=True)
os._exit(1)  # as if it had been killed: it takes nothing back
"""


@pytest.fixture
def store() -> distributed.TCPStore:
    """One that nobody's end takes away, as torchrun's."""
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.mark.parametrize("late", ["0", "1"])
def test_a_second_life_does_not_meet_the_first(store, late):
    variables = {"MASTER_PORT": [str(store.port)] * 2, "TORCHELASTIC_USE_AGENT_STORE": ["True"] * 2}
    lives = []
    for _ in range(3):
        first, second = run_text(LIFE, 2, arguments=[late], **variables)
        assert first.out == second.out != "", first.err + second.err
        lives.append(first.out)
    assert len(set(lives)) == 3


def test_who_does_not_come_is_named(store, monkeypatch):
    """Words of another life are answered, but do not count."""
    monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(store, 0, 3)]))
    store.set("ltrb/word/1", "of another life")
    with pytest.raises(distributed.DistStoreError, match=r"timed out waiting for ranks \[1, 2\]"):
        meet(timedelta(seconds=0.2))


def test_all_get_the_same_part_of_the_store(store, monkeypatch):
    """It holds nothing yet, and what one writes the others read."""
    store.set("ltrb/word/2", "of another life")
    store.set("greeting", "of another life")
    clients = [distributed.TCPStore("127.0.0.1", store.port, is_master=False) for _ in range(3)]
    ranks = threading.local()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(clients[ranks.own], ranks.own, 3)]))
    found = {}

    def join(rank: int) -> None:
        ranks.own = rank
        found[rank], *place = meet(timedelta(seconds=20))
        assert place == [rank, 3]

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found[0].check(["greeting"])
    found[1].set("greeting", "hello")
    assert [found[rank].get("greeting") for rank in range(3)] == [b"hello"] * 3
