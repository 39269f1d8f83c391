"""What a run was asked to do."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import Names, Positive, Record


class RequestRecord(Record):
    """`request.json`, in a run folder from its beginning on.

    Attributes:
        kind: `train`, `evaluate`, `uncertainty`, `certify` or `mix`.
        identity: the hash of everything that can change the result.
        asked: what was asked for, by name.
        pixels: what those trained on are, in words.
        workers: processes.
        command: the words of the command line; from Python, of the program.
        versions: of Holdfast, Python and libraries.
        git: revision of the source, followed by `+changes` where it was edited.
        started: when, ISO 8601, UTC.
    """

    SCHEMA: ClassVar[str] = "holdfast/request/1"
    FILE: ClassVar[str] = "request.json"

    kind: str | None = None
    identity: str | None = None
    asked: dict[str, Any] = {}
    pixels: str | None = None
    workers: Positive | None = None
    command: Names = ()
    versions: dict[str, Any] = {}
    device: str | None = None
    machine: str | None = None
    git: str | None = None
    started: str | None = None

    def headline(self) -> str:
        return f"Request: {self.kind or '?'}, begun {self.started or '?'}"

    def key_figures(self) -> list[tuple[str, str]]:
        return [("command", " ".join(self.command))] if self.command else []
