"""Ray Train's trainer without what one process on nodes that are there has no use for.

Only threads that start a training import this module: it pulls in Ray Train, pandas and pyarrow. Ray Train would start
two more processes with each training, both of which import all of that too, and waits for them before its worker: one
asks the autoscaler for nodes, as the placement group does already; one gives that back when its controller dies, as Ray
does by itself.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class _OnNodesThatAreThere(FixedScalingPolicy):
    """As many workers as were asked for, and nothing asked of the autoscaler."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class LaneTrainer(DataParallelTrainer):
    """See the module."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = _OnNodesThatAreThere(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments | {"scaling_policy": policy})
