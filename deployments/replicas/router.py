"""Gives a call to the replica that has the fewest. Serve's own choice looks at two replicas at random.

With few calls, each of which keeps a replica busy for long, chance leaves replicas idle while others have a
queue.

Replicas go to calls in the order in which these came. Serve's default finds the call by the id of the request
that its maker answered; calls that were made for one request share it, and of those that wait for a replica at
the same time all but one would wait for ever (seen: a task that is warmed up and run at once).
"""

from __future__ import annotations

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class LeastLoadedRouter(FIFOMixin, RequestRouter):
    """Offers all replicas; Serve takes the one with the shortest queue that it knows of."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One group of candidates: all."""
        if pending_request is not None:
            # Else Serve asks again at once, and again, without a pause.
            pending_request.routing_context.should_backoff = True
        if not candidate_replicas:
            return []
        lengths = self.replica_queue_len_cache
        unknown = [each for each in candidate_replicas if lengths.get(each.replica_id) is None]
        if unknown and len(candidate_replicas) > 1:
            # Serve passes over those whose queue it does not know, such as a replica that is new.
            await self._probe_queue_lens(unknown, 0)
        return [candidate_replicas]
