"""What lies where a file was meant to be: nothing, a Git LFS pointer, a page that says why not."""

from __future__ import annotations

from pathlib import Path

MOST = 200  # bytes at the beginning that tell


def placeholder(start: bytes) -> str:
    r"""What a file is in place of the one that was meant; empty where it may be that one.

    Args:
        start: its first bytes.

    Example:
        >>> placeholder(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a")
        'a Git LFS pointer, not the file itself: `git lfs pull` fetches it'
    """
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself: download it again"
    return ""


def placeholder_at(file: Path | str) -> str:
    """The same of a file; empty where it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return placeholder(opened.read(MOST))
    except OSError:
        return ""
