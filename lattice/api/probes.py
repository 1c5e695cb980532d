"""What may be asked of a service that asks nothing back: whether it lives, and whether it is ready."""

#: Reveals nothing but that there is a service, and of which release: asked by address, by any page and any client.
HEALTH = frozenset({"/healthz"})

#: Asked without an API key, which orchestration tools do not have.
PROBES = HEALTH | {"/readyz"}
