"""Runs code that nobody trusts in a child process that the kernel keeps apart. Knows nothing of Ray."""
