"""The real service under hostile requests."""
