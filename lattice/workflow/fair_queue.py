"""Jobs that wait for their turn: fair between groups, bounded per lane. Pure bookkeeping.

A lane holds what competes for the same resources, or is of one tenant; a group is a run. In each lane the groups
take turns, so a run of ten thousand tasks does not starve a run of three; and only so many items of a lane are out
at a time, so what waits for a GPU does not hold up what needs none.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Lane = TypeVar("Lane", bound=Hashable)
Item = TypeVar("Item", bound=Hashable)


@dataclass(slots=True)
class _Lane(Generic[Item]):
    """Groups in the order of their turns. `ready`: the lane stands in the queue's round of lanes."""

    groups: OrderedDict[Hashable, OrderedDict[Item, None]] = field(default_factory=OrderedDict)
    out: int = 0
    ready: bool = False


class FairQueue(Generic[Lane, Item]):
    """Items by lane and group; at most `limit(lane)` items of a lane are out, taken and not yet done.

    The limit may change; it is looked at whenever an item of the lane comes or is done.
    """

    def __init__(self, limit: Callable[[Lane], int]) -> None:
        self._limit = limit
        #: Nothing is taken.
        self.paused = False
        self._lanes: dict[Lane, _Lane[Item]] = {}
        self._round: deque[Lane] = deque()

    def put(self, lane: Lane, group: Hashable, item: Item) -> None:
        """Adds an item behind those of its group."""
        found = self._lanes.setdefault(lane, _Lane())
        found.groups.setdefault(group, OrderedDict())[item] = None
        self._make_ready(lane, found)

    def take(self) -> Item | None:
        """The next item whose lane has room, which then is out; None if there is none."""
        while self._round and not self.paused:
            lane = self._round.popleft()
            found = self._lanes[lane]
            found.ready = False
            if not found.groups or found.out >= self._limit(lane):
                self._drop_if_idle(lane, found)
                continue
            group, items = next(iter(found.groups.items()))
            item, _ = items.popitem(last=False)
            found.groups.move_to_end(group)
            if not items:
                del found.groups[group]
            found.out += 1
            self._make_ready(lane, found)
            return item
        return None

    def take_beside(
        self, lane: Lane, group: Hashable, accept: Callable[[Item], bool], most: int
    ) -> list[Item]:
        """The next items of a group, while they are accepted: they share the turn of one that was taken."""
        found = self._lanes[lane]
        items = found.groups.get(group, OrderedDict())
        taken: list[Item] = []
        while items and len(taken) < most and accept(next(iter(items))):
            taken.append(items.popitem(last=False)[0])
        if group in found.groups and not items:
            del found.groups[group]
        found.out += len(taken)
        return taken

    def done(self, lane: Lane) -> None:
        """An item of `lane` that was out is no longer."""
        found = self._lanes[lane]
        found.out -= 1
        self._make_ready(lane, found)
        self._drop_if_idle(lane, found)

    def discard(self, lane: Lane, group: Hashable, item: Item) -> bool:
        """Removes an item that was not taken yet; says whether it was there."""
        found = self._lanes.get(lane)
        items = found.groups.get(group) if found is not None else None
        if found is None or items is None or item not in items:
            return False
        del items[item]
        if not items:
            del found.groups[group]
        self._drop_if_idle(lane, found)
        return True

    def recheck(self) -> None:
        """The limits may have changed."""
        for lane, found in self._lanes.items():
            self._make_ready(lane, found)

    @property
    def has_next(self) -> bool:
        """Whether `take` may give something."""
        return bool(self._round) and not self.paused

    @property
    def waiting(self) -> bool:
        """Whether any item has not been taken yet."""
        return any(lane.groups for lane in self._lanes.values())

    def _make_ready(self, lane: Lane, found: _Lane[Item]) -> None:
        if found.groups and not found.ready and found.out < self._limit(lane):
            found.ready = True
            self._round.append(lane)

    def _drop_if_idle(self, lane: Lane, found: _Lane[Item]) -> None:
        if not found.groups and not found.out and not found.ready:
            del self._lanes[lane]
