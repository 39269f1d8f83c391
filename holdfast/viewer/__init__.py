"""Looking at run folders in a browser, while runs are being made."""

from .server import Viewer, view

__all__ = ["Viewer", "view"]
