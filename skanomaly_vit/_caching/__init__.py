"""Caches between fits: on disk, and in memory."""
