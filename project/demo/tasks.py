"""The training task of the demo: a Celery task that may be killed at any instant."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from project.demo import digits, network
from resilience import resumable_task

if TYPE_CHECKING:
    from resilience.runs.runs import ActiveRun

__all__ = ["check_labels", "train_digits"]


@resumable_task(key="digits:{name}", every=1, keep_last=3, keep_best=("accuracy", "max", 1), lease=4)
def train_digits(run: ActiveRun, name: str, epochs: int = 40, pace: float = 0.0, seed: int = 7) -> None:
    """Train on the stored digits and note how good the result is.

    Args:
        run: The run that owns this job.
        name: Names the result.
        epochs: Passes over the training images.
        pace: Seconds to rest after each pass, so that there is time to be killed.
        seed: Decides the first weights and every order.
    """
    training_images, training_labels, test_images, test_labels = network.split(*digits.from_database(), seed)
    weights = run.state or network.initial_weights(seed)
    for epoch in run.steps(epochs):
        weights = network.train_epoch(weights, training_images, training_labels, seed, epoch)
        score = network.accuracy(weights, test_images, test_labels)
        run.checkpoint(weights, metrics={"accuracy": score})
        run.progress(epoch + 1, epochs, f"accuracy {score:.3f}")
        time.sleep(pace)
    run.once("result", lambda: _store(name, weights, network.accuracy(weights, test_images, test_labels)))


@resumable_task(key="labels:{name}", max_stalled_attempts=1, lease=4)
def check_labels(run: ActiveRun, name: str) -> None:
    """Find a label that cannot be, and give up: the dashboard has a failed run to show.

    Args:
        run: The run that owns this job.
        name: Names the check.

    Raises:
        ValueError: Always.
    """
    raise ValueError("label 11 of image 1203 is no digit")


def _store(name: str, weights: network.Weights, score: float) -> None:
    from project.demo.models import TrainedModel

    TrainedModel.objects.create(name=name, sha256=network.fingerprint(weights), accuracy=score)
