"""Jobs that wait: groups take turns, lanes are bounded, nothing stays behind."""

from __future__ import annotations

import random

from lattice.workflow.fair_queue import FairQueue


def taken(queue: FairQueue[str, str]) -> list[str]:
    items = []
    while (item := queue.take()) is not None:
        items.append(item)
    return items


def test_groups_take_turns() -> None:
    """Three items do not wait behind ten thousand; in a group the order stays."""
    queue: FairQueue[str, str] = FairQueue(lambda lane: 100_000)
    for number in range(10_000):
        queue.put("lane", "large", f"l{number}")
    for number in range(3):
        queue.put("lane", "small", f"s{number}")
    assert [queue.take() for _ in range(7)] == ["l0", "s0", "l1", "s1", "l2", "s2", "l3"]


def test_a_lane_has_room_for_so_many() -> None:
    """What is done makes room; other lanes do not wait for it."""
    queue: FairQueue[str, str] = FairQueue(lambda lane: 2)
    for number in range(4):
        queue.put("gpu", "run", f"g{number}")
    queue.put("cpu", "run", "c0")
    assert sorted(taken(queue)) == ["c0", "g0", "g1"]
    assert not queue.has_next
    queue.done("gpu")
    assert queue.has_next
    assert taken(queue) == ["g2"]
    queue.done("cpu")
    assert taken(queue) == []
    queue.done("gpu")
    queue.done("gpu")
    assert taken(queue) == ["g3"]


def test_an_item_can_be_discarded_while_it_waits() -> None:
    """Once; what was taken is not there any more."""
    queue: FairQueue[str, str] = FairQueue(lambda lane: 1)
    for item in "abc":
        queue.put("lane", "run", item)
    assert queue.take() == "a"
    assert not queue.discard("lane", "run", "a")
    assert queue.discard("lane", "run", "b")
    assert not queue.discard("lane", "run", "b")
    assert not queue.discard("other", "run", "c")
    queue.done("lane")
    assert taken(queue) == ["c"]


def test_a_limit_that_rises_makes_room() -> None:
    """Once the queue is told to look again."""
    limits = {"lane": 1}
    queue: FairQueue[str, str] = FairQueue(limits.__getitem__)
    for item in "abc":
        queue.put("lane", "run", item)
    assert taken(queue) == ["a"]
    limits["lane"] = 3
    assert taken(queue) == []
    queue.recheck()
    queue.recheck()
    assert taken(queue) == ["b", "c"]


def test_nothing_is_taken_while_it_is_paused() -> None:
    """What was put meanwhile comes afterwards."""
    queue: FairQueue[str, int] = FairQueue(lambda lane: 2)
    queue.put("lane", "group", 1)
    queue.paused = True
    queue.put("lane", "group", 2)
    assert not queue.has_next
    assert queue.take() is None
    queue.paused = False
    assert queue.has_next
    assert [queue.take(), queue.take()] == [1, 2]


def test_nothing_stays_behind() -> None:
    """Whatever happened in whatever order: all are taken once, and then the queue holds nothing."""
    for seed in range(50):
        chance = random.Random(seed)
        queue: FairQueue[str, str] = FairQueue(
            {lane: chance.randint(1, 4) for lane in "xyz"}.__getitem__
        )
        expected, found, out = set(), [], []
        for number in range(200):
            lane, group = chance.choice("xyz"), chance.choice("abc")
            match chance.randint(0, 3):
                case 0 | 1:
                    item = f"{lane}{group}{number}"
                    queue.put(lane, group, item)
                    expected.add(item)
                case 2:
                    item = queue.take() or ""
                    if item:
                        found.append(item)
                        out.append(item[0])
                case 3 if out:
                    queue.done(out.pop())
            if chance.random() < 0.1 and expected - set(found):
                item = chance.choice(sorted(expected - set(found)))
                assert queue.discard(item[0], item[1], item)
                expected.discard(item)
        while out or queue.has_next:
            while (item := queue.take() or "") != "":
                found.append(item)
                out.append(item[0])
            queue.done(out.pop())
        assert sorted(found) == sorted(expected), seed
        assert not queue.waiting
        assert not queue._lanes, seed


def test_items_share_the_turn_of_one() -> None:
    """Those of its group only, in their order, as long as they are accepted; they are out, too."""
    queue: FairQueue[str, str] = FairQueue(lambda _: 4)
    for item in ("a1", "a2", "a3", "a4"):
        queue.put("cpu", "a", item)
    queue.put("cpu", "b", "b1")
    assert queue.take() == "a1"
    assert queue.take_beside("cpu", "a", lambda item: item != "a3", 5) == ["a2"]
    assert queue.take_beside("cpu", "a", lambda _: True, 1) == ["a3"]
    assert queue.take() == "b1"
    assert queue.take() is None
    queue.done("cpu")
    assert queue.take() == "a4"
    assert queue.take_beside("cpu", "a", lambda _: True, 5) == []
