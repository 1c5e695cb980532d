"""Lattice as a Ray Serve application. `deployments.app:build` is what `serve run` calls."""
