"""Every attack class by its name."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping

from .base import Attack


@functools.cache
def attack_classes() -> Mapping[str, type[Attack]]:
    """The attack classes of this package that have a `name`, by that name, in its order.

    They are found in the package's files: a new file needs no entry anywhere.

    Example:
        >>> attack_classes()["deepfool"]
        <class 'holdfast.attacks.deepfool.DeepFool'>
    """
    package = importlib.import_module(__package__)
    found = {}
    for file in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{__package__}.{file.name}")
        for each in vars(module).values():
            named = inspect.isclass(each) and issubclass(each, Attack) and hasattr(each, "name")
            if named and each.__module__ == module.__name__ and not inspect.isabstract(each):
                found[each.name] = each
    return dict(sorted(found.items()))
