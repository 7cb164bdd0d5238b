"""A small neural network in NumPy: 64 pixels, 32 hidden units, 10 classes; the same seed gives the same bytes."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["Weights", "accuracy", "fingerprint", "initial_weights", "split", "train_epoch"]

Weights = dict[str, np.ndarray]

_HIDDEN, _BATCH, _RATE = 32, 32, 0.2
_TRAINING_SHARE = 0.8


def initial_weights(seed: int) -> Weights:
    """Return the untrained weights of a seed."""
    random = np.random.default_rng(seed)
    return {
        "hidden": random.normal(0, 0.1, (64, _HIDDEN)),
        "hidden_bias": np.zeros(_HIDDEN),
        "output": random.normal(0, 0.1, (_HIDDEN, 10)),
        "output_bias": np.zeros(10),
    }


def split(images: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images and labels, then test images and labels."""
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    cut = int(len(labels) * _TRAINING_SHARE)
    return images[order[:cut]], labels[order[:cut]], images[order[cut:]], labels[order[cut:]]


def train_epoch(weights: Weights, images: np.ndarray, labels: np.ndarray, seed: int, epoch: int) -> Weights:
    """Return the weights after one pass in mini-batches; the order depends on seed and epoch alone."""
    weights = {name: array.copy() for name, array in weights.items()}
    order = np.random.default_rng([seed, epoch + 1]).permutation(len(labels))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        _descend(weights, images[batch], labels[batch])
    return weights


def accuracy(weights: Weights, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose class is guessed right, from 0 to 1."""
    _, scores = _forward(weights, images)
    return float((scores.argmax(axis=1) == labels).mean())


def fingerprint(weights: Weights) -> str:
    """Return the SHA-256 of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def _forward(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(images @ weights["hidden"] + weights["hidden_bias"], 0)
    return hidden, hidden @ weights["output"] + weights["output_bias"]


def _descend(weights: Weights, images: np.ndarray, labels: np.ndarray) -> None:
    """Take one step of gradient descent on the cross-entropy, in place."""
    hidden, scores = _forward(weights, images)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(labels)), labels] -= 1
    slope = chances / len(labels)
    back = (slope @ weights["output"].T) * (hidden > 0)
    weights["output"] -= _RATE * hidden.T @ slope
    weights["output_bias"] -= _RATE * slope.sum(axis=0)
    weights["hidden"] -= _RATE * images.T @ back
    weights["hidden_bias"] -= _RATE * back.sum(axis=0)
