"""Reports: pages that show what run folders hold. They only read; nothing is measured here."""

from .page import write_report

__all__ = ["write_report"]
