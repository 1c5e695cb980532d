"""Recognises handwritten digits with a trained model on a replica, for many runs at once.

    python -m lattice.examples.batched_digits [--url http://127.0.0.1:8000]

A class task loads its model once for each replica: a forest of 300 trees, trained on 900 of the images that
come with scikit-learn. 20 runs at a time ask it for 10 images each, once with batches across the runs and once
one image at a time. Predictions are checked against the same model in this process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from lattice import LatticeClient, Run, StartTask, task
from lattice.examples import command

TRAINED_ON = 900
RUNS, IMAGES_PER_RUN = 20, 10
BATCH_SIZE = 32
NEEDED_ACCURACY = 0.9


def forest() -> RandomForestClassifier:
    """The model, always the same."""
    images, labels = load_digits(return_X_y=True)
    model = RandomForestClassifier(n_estimators=300, random_state=0)
    return model.fit(images[:TRAINED_ON], labels[:TRAINED_ON])


@task(inputs=["image"], outputs=["digit"], autoscaling={"max_replicas": 1}, name="one at a time")
class Recogniser:
    """Recognises one image a call."""

    def __init__(self) -> None:
        self.model = forest()

    def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
        """The digit on an image of 64 numbers."""
        return {"digit": int(self.model.predict(np.array([params["image"]]))[0])}


@task(
    inputs=["image"],
    outputs=["digit"],
    batch_size=BATCH_SIZE,
    batch_timeout=0.02,
    autoscaling={"max_replicas": 1},
    name="in batches",
)
class BatchRecogniser:
    """Recognises a list of images a call."""

    def __init__(self) -> None:
        self.model = forest()

    def __call__(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The digits on images of 64 numbers each."""
        found = self.model.predict(np.array([params["image"] for params in batch]))
        return [{"digit": int(digit)} for digit in found]


@dataclass(frozen=True)
class Round:
    """What a round of runs came to: digits in order, batch sizes, seconds."""

    digits: list[int]
    batch_sizes: list[int]
    seconds: float


def start(client: LatticeClient, code: type, images: Sequence[list[float]]) -> Run:
    """A run that asks for the digit on each image."""
    workflow = client.create_workflow()
    for image in images:
        workflow.add_task(code, {"image": image})
    return workflow.run()


def finish(run: Run) -> tuple[list[int], list[int]]:
    """Digits in the order of the tasks, and the sizes of the batches that they were in."""
    sizes = [event.batch_size or 1 for event in run.events() if isinstance(event, StartTask)]
    return [outputs["digit"] for outputs in run.result(timeout=120).values()], sizes


def measure(client: LatticeClient, code: type, images: list[list[float]]) -> Round:
    """All images, in runs that go on at the same time."""
    finish(start(client, code, images[:1]))  # until there is a replica with its model
    parts = [images[at : at + IMAGES_PER_RUN] for at in range(0, len(images), IMAGES_PER_RUN)]
    begun = time.monotonic()
    with ThreadPoolExecutor(RUNS) as threads:
        found = list(threads.map(lambda part: finish(start(client, code, part)), parts))
    seconds = time.monotonic() - begun
    return Round(
        [digit for digits, _ in found for digit in digits],
        [size for _, sizes in found for size in sizes],
        seconds,
    )


def example(url: str) -> None:
    """Recognises the same images in batches and one at a time, and compares."""
    pixels, labels = load_digits(return_X_y=True)
    unseen = pixels[TRAINED_ON : TRAINED_ON + RUNS * IMAGES_PER_RUN]
    truth = labels[TRAINED_ON : TRAINED_ON + RUNS * IMAGES_PER_RUN]
    here = forest().predict(unseen).tolist()
    with LatticeClient(url) as client:
        single = measure(client, Recogniser, unseen.tolist())
        batched = measure(client, BatchRecogniser, unseen.tolist())
    mean = sum(batched.batch_sizes) / len(batched.batch_sizes)
    print(f"one at a time  {single.seconds:5.1f} s for {len(here)} images in {RUNS} runs")
    print(f"in batches     {batched.seconds:5.1f} s, on average {mean:.1f} images together")
    print(f"gain           {single.seconds / batched.seconds:5.1f} times")
    command.check(single.digits == here, "the digits found one at a time are not those found here")
    command.check(batched.digits == here, "the digits found in batches are not those found here")
    command.check(max(batched.batch_sizes) > 1, "no two images were in a batch")
    right = float(np.mean(np.array(here) == truth))
    command.check(right >= NEEDED_ACCURACY, f"the accuracy {right:.4f} is too low")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.run(example, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
