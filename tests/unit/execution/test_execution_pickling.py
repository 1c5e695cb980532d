"""Values as pickles: packed once, without copies of large buffers, and read back from either place."""

from __future__ import annotations

import io
import pickle
import threading

import pytest

from lattice.execution import pickling

numpy = pytest.importorskip("numpy")


def stored(packed: pickling.Packed) -> bytes:
    file = io.BytesIO()
    assert packed.write(file) == len(file.getvalue())
    return file.getvalue()


@pytest.mark.parametrize("value", [None, {"a": [1, 2]}, "x" * 100_000, list(range(50_000))])
def test_values_without_buffers_are_their_pickle(value: object) -> None:
    """One pickling serves all destinations."""
    packed = pickling.pack(value, 1024)
    assert packed.buffers == ()
    assert packed.size == len(packed.data)
    assert stored(packed) is not None
    assert pickle.loads(stored(packed)) == value
    assert pickling.loads(*packed.parts()) == value


def test_a_large_buffer_is_not_copied_into_the_pickle() -> None:
    """It is a view of the array itself."""
    array = numpy.arange(1_000_000)
    packed = pickling.pack({"a": array, "b": 1}, 1024)
    assert len(packed.data) < 1024
    (buffer,) = packed.buffers
    assert numpy.shares_memory(numpy.frombuffer(buffer, dtype=array.dtype), array)
    assert packed.size == pytest.approx(len(stored(packed)), abs=100)
    assert (pickle.loads(stored(packed))["a"] == array).all()


def test_small_buffers_stay_in_the_pickle() -> None:
    """A value that fits inline needs one pickling only."""
    packed = pickling.pack([numpy.arange(10), numpy.arange(20)], 1024)
    assert packed.buffers == ()


def test_a_value_is_ones_own_copy_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it, arrays share the memory of the object store and are read-only."""
    array = numpy.zeros(10_000)
    data, buffers = pickling.pack(array, 1024).parts()
    shared = [memoryview(buffer).toreadonly() for buffer in buffers]
    private = pickling.loads(data, shared)
    private[0] = 1.0  # type: ignore[index]  # an array
    assert array[0] == 0.0
    monkeypatch.setattr(pickling, "MAX_PRIVATE", 10_000)
    assert not pickling.loads(data, shared).flags.writeable  # type: ignore[attr-defined]  # an array


def test_classes_that_only_this_process_knows_travel() -> None:
    """By value."""

    class Local:
        x = 3

    assert pickle.loads(pickling.dumps(Local())).x == 3


def test_what_cannot_be_pickled_raises() -> None:
    """Whatever pickle says."""
    with pytest.raises(TypeError):
        pickling.pack({"lock": threading.Lock()}, 1024)
