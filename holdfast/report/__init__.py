"""Reports: pages that show what run folders hold. They only read; nothing is measured here."""

from .image_by_image import compare
from .page import write_report

__all__ = ["compare", "write_report"]
