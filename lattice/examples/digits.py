"""Recognises handwritten digits with a model trained in one task and applied in parallel ones.

    python -m lattice.examples.digits [--url http://127.0.0.1:8000]

The images are the 1,797 that come with scikit-learn. The model itself travels from task to task. The
result is checked against a threshold, and against the same training in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from lattice import LatticeClient, task
from lattice.examples import command

PARTS = 4
#: The first so many images are for training, the others for testing.
TRAINED_ON = 900
NEEDED = 0.95


class Trained(TypedDict):
    model: SVC
    classes: list[int]


def train_on(count: int) -> SVC:
    """A support vector machine that has seen the first `count` images."""
    images, labels = load_digits(return_X_y=True)
    return SVC(gamma=0.001).fit(images[:count], labels[:count])


@task(retry=2, timeout=60)
def train(count: int) -> Trained:
    """A trained model, and the digits that it knows."""
    model = train_on(count)
    return Trained(model=model, classes=[int(label) for label in model.classes_])


@task
def test_images(start: int, parts: int) -> list[np.ndarray[Any, Any]]:
    """The images that the model has not seen, in parts."""
    images, _ = load_digits(return_X_y=True)
    return np.array_split(images[start:], parts)


@task
def classify(model: SVC, images: list[np.ndarray[Any, Any]], part: int) -> np.ndarray[Any, Any]:
    """The digits on the images of one part."""
    found: np.ndarray[Any, Any] = model.predict(images[part])
    return found


@task
def accuracy(predictions: list[np.ndarray[Any, Any]], start: int) -> float:
    """Which share of the predictions is right."""
    _, labels = load_digits(return_X_y=True)
    return float(np.mean(np.concatenate(predictions) == labels[start:]))


def example(url: str) -> None:
    """Trains, classifies in parallel, and compares with the same done here."""
    with LatticeClient(url) as client:
        workflow = client.create_workflow("digits")
        trained = workflow.add_task(train, {"count": TRAINED_ON})
        images = workflow.add_task(test_images, {"start": TRAINED_ON, "parts": PARTS})
        predictions = [
            workflow.add_task(
                classify, {"model": trained.outputs["model"], "images": images, "part": part}
            )
            for part in range(PARTS)
        ]
        score = workflow.add_task(accuracy, {"predictions": list(predictions), "start": TRAINED_ON})
        run = workflow.run()
        found = run.result(timeout=120, progress=True)[score.name]["result"]
        print(f"accuracy {found:.4f} on digits {run[trained]['classes']}")

        unseen, labels = load_digits(return_X_y=True)
        here = train_on(TRAINED_ON).predict(unseen[TRAINED_ON:])
        there = np.concatenate([run[part]["result"] for part in predictions])
        command.check(found >= NEEDED, f"the accuracy {found:.4f} is below {NEEDED}")
        command.check(np.array_equal(here, there), "the predictions are not those made here")
        command.check(
            found == float(np.mean(here == labels[TRAINED_ON:])),
            "the accuracy is not that found here",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.run(example, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
