"""Work on a Ray cluster, which starts a task again where a worker or its node is lost: batches of a weights leg."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from unforgotten.audit.weights.batches import Batch, Work, measure_batch
from unforgotten.audit.weights.piece import PieceMeasured
from unforgotten.records.extras import missing

RETRIES = 3


class RayWorkers:
    """A cluster that is joined for one piece of work, and left again if it was not joined before."""

    def __init__(self, address: str) -> None:
        """Join the cluster.

        Raises:
            ValueError: Ray is not installed.
            ConnectionError: there is no cluster at the address.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(missing("ray", "unforgotten[ray]")) from None
        self.ray: Any = ray
        self.joined = not ray.is_initialized()
        if self.joined:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)

    def measure(self, work: Work, batches: Sequence[Batch]) -> Iterator[list[PieceMeasured]]:
        """Yield the batches in their order.

        Raises:
            ValueError: as `measure_batch`.
        """
        run = self.ray.remote(max_retries=RETRIES)(measure_batch)
        try:
            shared = self.ray.put(work)
            for task in [run.remote(shared, batch) for batch in batches]:
                yield self._result(task)
        finally:
            self.leave()

    def leave(self) -> None:
        """Leave the cluster, if it was joined here; what still works for this process ends."""
        if self.joined:
            self.ray.shutdown()

    def _result(self, task: Any) -> Any:
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
