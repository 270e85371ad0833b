"""Profiles and memory snapshots of a few steps."""
