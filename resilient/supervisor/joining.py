# SPDX-License-Identifier: Apache-2.0
"""Which side a supervisor has among the pods of its run."""

from __future__ import annotations

from resilient.supervisor.following import Following
from resilient.supervisor.leading import Leading
from resilient.supervisor.pods import Alone, Wiring
from resilient.supervisor.scene import Scene


def join(scene: Scene, wiring: Wiring) -> Alone:
    """The first of several pods leads, the others follow."""
    launch, node = scene.launch, scene.platform.node
    if launch.nodes == 1:
        return Alone(launch, wiring)
    if launch.node == 0:
        return Leading(launch, node, wiring, scene.variables, run_id=scene.place.run_id)
    knows_store = scene.settings.checkpoints is not None
    return Following(launch, node, wiring, scene.variables, knows_store=knows_store)
