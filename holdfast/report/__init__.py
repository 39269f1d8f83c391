"""Reports: pages that show what run folders hold. They only read; nothing is measured here."""

from .image_by_image import compare
from .page import write_report
from .requirements import require

__all__ = ["compare", "require", "write_report"]
