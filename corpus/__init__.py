"""Manifests, and what is usable in them."""
