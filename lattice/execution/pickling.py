"""Values as pickles: how an output is packed once for the object store, the database and the storage.

Every output is pickled by itself, so that a task is given only what it asks for. Large buffers (arrays)
are not copied into the pickle: they stay where they are until they are written to their destinations.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import cloudpickle

from lattice.execution import source

#: Values up to this many bytes are given to a task as its own copy. Larger ones that come through the
#: object store share their memory with it and with every other task on the node that takes them: their
#: arrays are read-only.
MAX_PRIVATE = 16 * 1024 * 1024

_PROTOCOL = 5

#: A pickle and its out-of-band buffers, as they lie in the object store.
Parts = tuple[pickle.PickleBuffer, list[pickle.PickleBuffer]]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def reducer_override(self, obj: object) -> Any:
        reduced = source.reduce_class(obj)
        return super().reducer_override(obj) if reduced is None else reduced


@dataclass(frozen=True, slots=True)
class Packed:
    """A pickled value. `buffers` are views into the value itself, which must not change meanwhile."""

    value: object
    data: bytes
    buffers: tuple[pickle.PickleBuffer, ...]

    @property
    def size(self) -> int:
        """About what the pickle has in bytes once the buffers are in it; exact without buffers."""
        return len(self.data) + sum(_size(buffer) for buffer in self.buffers)

    def write(self, file: IO[bytes]) -> int:
        """Writes one ordinary pickle, buffers included; returns its size in bytes."""
        if not self.buffers:
            file.write(self.data)
        else:
            _Pickler(file, protocol=_PROTOCOL).dump(self.value)
        return file.tell()

    def parts(self) -> Parts:
        """What to put into the object store, which takes over the buffers without another pickling."""
        return pickle.PickleBuffer(self.data), list(self.buffers)


def _size(buffer: object) -> int:
    return memoryview(buffer).nbytes  # type: ignore[arg-type]  # the buffer protocol is not typed in 3.11


def pack(value: object, large: int) -> Packed:
    """Pickles `value`; buffers of more than `large` bytes stay outside.

    Raises:
        BaseException: whatever pickling raises; the value cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes <= large:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    _Pickler(file, protocol=_PROTOCOL, buffer_callback=in_band).dump(value)
    return Packed(value, file.getvalue(), tuple(buffers))


def dumps(value: object) -> bytes:
    """One ordinary pickle of `value`. Raises what pickling raises."""
    file = io.BytesIO()
    _Pickler(file, protocol=_PROTOCOL).dump(value)
    return file.getvalue()


def loads(data: Any, buffers: Sequence[Any] = ()) -> object:
    """The value of a pickle. Only for processes that run user tasks.

    Raises:
        BaseException: whatever unpickling raises.
    """
    if _size(data) + sum(map(_size, buffers)) <= MAX_PRIVATE:
        buffers = [bytearray(buffer) for buffer in buffers]
    return pickle.loads(data, buffers=buffers)


def load(file: IO[bytes]) -> object:
    """The value of the pickle in `file`. Only for processes that run user tasks. Raises as `loads`."""
    return pickle.load(file)
