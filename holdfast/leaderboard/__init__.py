"""Leaderboards: all evaluations below a folder, and figures that others published, ranked."""

from .site import write_leaderboard

__all__ = ["write_leaderboard"]
