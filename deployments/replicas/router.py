"""Gives a call to the replica that has the fewest. Serve's own choice looks at two replicas at random.

With few calls, each of which keeps a replica busy for long, chance leaves replicas idle while others have a
queue.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class LeastLoadedRouter(RequestRouter):
    """Offers all replicas; Serve takes the one with the shortest queue that it knows of."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One group of candidates: all."""
        if not candidate_replicas:
            return []
        lengths = self.replica_queue_len_cache
        unknown = [each for each in candidate_replicas if lengths.get(each.replica_id) is None]
        if unknown and len(candidate_replicas) > 1:
            # Serve passes over those whose queue it does not know, such as a replica that is new.
            await self._probe_queue_lens(unknown, 0)
        return [candidate_replicas]
