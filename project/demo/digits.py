"""The 1,797 handwritten digits that scikit-learn ships, as rows and as arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Arrays", "as_rows", "from_database", "load_arrays"]

#: Images (n x 64, from 0 to 1) and labels (n).
Arrays = tuple[np.ndarray, np.ndarray]


@lru_cache(maxsize=1)
def load_arrays() -> Arrays:
    """Return all images and labels from the package's own file."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.data.astype(np.float64) / 16, bunch.target.astype(np.int64)


def as_rows(source_id: int) -> Iterator[dict[str, object]]:
    """Yield each digit as the fields of a `Digit`."""
    images, labels = load_arrays()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = bytes((image * 16).astype(np.uint8)).hex()
        yield {"number": number, "source_id": source_id, "label": int(label), "pixels": pixels}


def from_database() -> Arrays:
    """Return images and labels as stored in the database, in the order of their numbers."""
    from project.demo.models import Digit

    rows = list(Digit.objects.order_by("number").values_list("pixels", "label"))
    images = np.array([np.frombuffer(bytes.fromhex(pixels), dtype=np.uint8) for pixels, _ in rows], dtype=np.float64)
    return images / 16, np.array([label for _, label in rows], dtype=np.int64)
