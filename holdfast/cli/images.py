"""The images that a verb works on, by its options and by what the model's card remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError

if TYPE_CHECKING:
    from ..data import DataSet, Split


class DataOptions(Protocol):
    """The options that say which data, and how they are read."""

    @property
    def data(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def grey(self) -> bool: ...
    @property
    def labels(self) -> str | None: ...
    @property
    def class_order(self) -> str | None: ...


class ChoosingOptions(DataOptions, Protocol):
    """Those that also say which images of them."""

    @property
    def split(self) -> str | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def indices(self) -> str | None: ...
    @property
    def balanced(self) -> bool: ...


def check_limit(limit: int | None) -> None:
    """InputError where `--limit` is out of range."""
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, not {limit}")


def data_of(options: DataOptions, model: str = "", card: dict[str, Any] | None = None) -> DataSet:
    """The data set of the options, in the size, colours and class order of a model.

    Args:
        model, card: the model's name and card; without, the data are as their files have them.

    Raises:
        InputError: as `holdfast.data.load`; the model knows other classes than the data.
    """
    from .. import data as datasets
    from ..evaluation.cards import in_classes_of

    card = card or {}
    dataset = datasets.load(
        options.data,
        size=options.size,
        grey=options.grey,
        labels=options.labels,
        class_order=options.class_order,
        like=card.get("images"),
    )
    return in_classes_of(model, card, dataset)


class ModelOptions(DataOptions, Protocol):
    """Those that also say which model, and which of its outputs stand for which class."""

    @property
    def model(self) -> str: ...
    @property
    def classes(self) -> str | None: ...


def fitted(options: ModelOptions, model: Any) -> tuple[Any, DataSet]:
    """The model and the data in the same classes: the data's in the order of the model's card, or
    the model's outputs as `--classes` says, or by their names.

    Raises:
        InputError: as `data_of`; as `holdfast.models.class_map.class_map`.
    """
    from ..loading import in_classes
    from ..models.chain import undefended

    card = dict(getattr(undefended(model), "card", {}))
    if options.classes is not None:
        card.pop("classes", None)
    dataset = data_of(options, options.model, card)
    return in_classes(model, options.classes, dataset.classes), dataset


def chosen(options: ChoosingOptions, dataset: DataSet) -> tuple[DataSet, str, Split]:
    """The data set with only the images that are asked for in a split; its name, and the split."""
    from ..data import choose

    name = dataset.usual(options.split)
    dataset = choose(
        dataset,
        name,
        indices=options.indices,
        limit=options.limit,
        balanced=options.balanced,
    )
    return dataset, name, dataset.split(name)
