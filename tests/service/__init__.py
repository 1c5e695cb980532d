"""The real service, as its clients see it."""
