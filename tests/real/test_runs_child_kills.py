from __future__ import annotations

import pytest

from tests.length import LONG
from tests.real.runs_kills import SHORT_LEASE, train_and_kill
from tests.real.runs_scenes import Scene

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000 if LONG else 300)]

SCENES = [("filesystem", "sqlite", SHORT_LEASE), ("rabbitmq", "mariadb", SHORT_LEASE)]
if LONG:
    SCENES.append(("redis", "postgresql", SHORT_LEASE))


@pytest.mark.parametrize("scene", SCENES, ids=["-".join(scene[:2]) for scene in SCENES], indirect=True)
def test_child_killed_at_random__ends_with_the_same_weights(scene: Scene) -> None:
    """SIGKILL of a worker's child changes no bit, redoes at most the step in work, and applies no effect twice."""
    train_and_kill(scene, "child", 100 if LONG else 20)
