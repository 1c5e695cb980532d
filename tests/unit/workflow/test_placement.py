"""What can never run is refused with what was asked and what there is."""

from __future__ import annotations

import pytest

from lattice.errors import InvalidRequestError
from lattice.workflow.placement import Capacity, check, gpu_share
from lattice.workflow.task import Resources

SMALL, LARGE = Capacity(2, 0, 4096), Capacity(8, 2, 16384)


@pytest.mark.parametrize(
    ("resources", "memories", "share"),
    [
        (Resources(), [], 0.0),
        (Resources(gpu=0.5), [], 0.5),
        (Resources(gpu=0.5, gpu_mem=9000), [8192], 0.5),
        (Resources(gpu_mem=4096), [8192, 16384], 0.5),
        (Resources(gpu_mem=12288), [8192, 16384], 0.75),
        (Resources(gpu_mem=1), [3], 0.3334),
        (Resources(gpu_mem=8192), [], None),
        (Resources(gpu_mem=8192), [4096], None),
    ],
)
def test_gpu_memory_becomes_a_share(
    resources: Resources, memories: list[float], share: float | None
) -> None:
    """`gpu` wins; memory is a share of the smallest GPU that holds it, rounded up."""
    assert gpu_share(resources, memories) == pytest.approx(share)


def test_what_one_node_holds_is_accepted() -> None:
    """All of it on one node, not spread."""
    check(Resources(cpu=8, cpu_mem=16384, gpu=2), "task 't'", [SMALL, LARGE], [])


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (Resources(cpu=9), "cpu 9 asked"),
        (Resources(gpu=3), "gpu 3 asked"),
        (Resources(cpu_mem=20000), "cpu_mem 20000 asked"),
    ],
)
def test_what_no_node_holds_is_refused(resources: Resources, words: str) -> None:
    """The error says what was asked, and what the largest node has."""
    with pytest.raises(InvalidRequestError) as caught:
        check(resources, "task 't'", [SMALL, LARGE], [])
    assert words in str(caught.value)
    assert "largest has cpu 8, cpu_mem 16384 MiB, gpu 2" in str(caught.value)


def test_gpu_memory_that_nobody_has_is_refused() -> None:
    """Either nobody said, or it is too little."""
    with pytest.raises(InvalidRequestError, match="no connected worker"):
        check(Resources(gpu_mem=1), "task 't'", [LARGE], [])
    with pytest.raises(InvalidRequestError, match="largest registered GPU has 100 MiB"):
        check(Resources(gpu_mem=101), "task 't'", [LARGE], [100])


def test_no_node_at_all_is_refused() -> None:
    """As when every worker was disconnected."""
    with pytest.raises(InvalidRequestError, match="no node"):
        check(Resources(), "task 't'", [], [])
