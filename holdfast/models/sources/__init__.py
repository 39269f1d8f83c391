"""Models of other libraries, by the library's name: `timm:NAME`, `onnx:FILE`, …

One file a library. Each has `build(name, options)`, which imports the library and returns a
`Source`: the model, and the preprocessing that the library itself does.
"""

from __future__ import annotations

import importlib
import os

from .base import Source, split

# The word before the colon, and the file here that knows it.
SOURCES = {
    "timm": "timm_models",
    "torchvision": "torchvision_models",
    "transformers": "transformers_models",
    "onnx": "onnx_models",
    "robustbench": "robustbench_models",
}


def source_of(text: str) -> str | None:
    """The library that a model's name names, or None.

    Example:
        >>> source_of("timm:resnet18"), source_of("timm.models:resnet18")
        ('timm', None)
    """
    kind = text.partition(":")[0]
    if ":" in text and kind in SOURCES:
        return kind
    return "onnx" if text.endswith(".onnx") and os.path.isfile(text) else None


def opened(text: str) -> Source:
    """The model that a library builds.

    Raises:
        InputError: the library is missing; it knows no such model; a file does not fit.
    """
    kind = source_of(text)
    assert kind is not None
    name, options = split(text, kind)
    module = importlib.import_module(f".{SOURCES[kind]}", __package__)
    return module.build(name, options)


__all__ = ["SOURCES", "Source", "opened", "source_of", "split"]
