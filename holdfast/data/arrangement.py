"""Which files of a folder are images of which class and split, in any of the usual arrangements.

    DIR/train/CLASS/*  DIR/test/CLASS/*  DIR/val/CLASS/*      under any of their names
    DIR/images/train/CLASS/*                                  one folder deeper
    DIR/CLASS/*                                               no splits
    DIR/train/CLASS/images/*  DIR/val/images/*                Tiny-ImageNet (val_annotations.txt)
    DIR/val/*  DIR/*                                          flat, with a file of labels

Nothing is opened here but such files of labels.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..runs.files import read_text
from .base import SPLIT_WORDS, SPLITS
from .class_order import SYNSET, read_class_order
from .label_tables import LabelTable, beside, read_table
from .names import natural, shown

PICTURES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm",
}  # fmt: skip
# What stands beside images and is none: left out, and said. Any other file is taken for an image.
BESIDE = {
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".htm",
    ".db", ".ini", ".mat", ".npy", ".npz", ".pdf", ".rst", ".py", ".cfg", ".toml", ".log",
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".pkl", ".parquet", ".arrow",
    ".tfrecord", ".h5", ".hdf5", ".pt", ".pth", ".lock", ".license", ".sqlite",
    # What photo programs and maps, downloads, editors and versions of data leave beside a picture.
    ".xmp", ".aae", ".thm", ".pp3", ".dop", ".exif", ".wld", ".jgw", ".pgw", ".tfw", ".prj",
    ".geojson", ".pts", ".url", ".lnk", ".webloc", ".md5", ".sha1", ".sha256", ".part", ".tmp",
    ".bak", ".swp", ".crdownload", ".dvc", ".sh", ".bat", ".ipynb", ".doc", ".docx", ".xls",
    ".xlsx", ".mp3", ".mp4", ".mov", ".avi", ".wav",
}  # fmt: skip
INNER = ("images", "image", "imgs", "img")  # in a class folder, the folder of its images
PLAIN_WORDS = {*INNER, "data", "dataset", "set", "split", "ilsvrc", "imagenet"}
WORDS = ("words.txt", "LOC_synset_mapping.txt", "synset_words.txt", "imagenet_class_index.json")
CLASS_LISTS = (*WORDS, "wnids.txt")  # beside the images, and understood
_TOLD = 5  # names in a line, at most

Files = dict[str, list[Path]]  # the image files of each class


@dataclass
class Arrangement:
    """What a folder holds.

    Attributes:
        root: where the splits or the classes are: the folder, or one in it.
        splits: the files of each class, of each split that there is; `all` where there are none.
        classes: their names, in the order of the labels.
        named: whether these are names; else numbers, which stand for themselves.
        lacking: why a split has no images, where there is a reason.
        also: what else a class is called.
        told: what was recognised, and what was not understood, one line each.
    """

    root: Path
    splits: dict[str, Files] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    named: bool = True
    lacking: dict[str, str] = field(default_factory=dict)
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)  # the splits whose labels a file has
    read: set[Path] = field(default_factory=set)  # what was understood


def arrange(folder: Path, labels: str | Path | None = None) -> Arrangement:
    """How a folder of images is arranged.

    Args:
        labels: a file that says which class each image of a flat folder belongs to; None: the one
            beside them, if there is one.

    Raises:
        InputError: no such folder; no classes; a class without images, or one that `train` lacks;
            two folders for one split. One line.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    first = _class_first(folder)
    if first is not None:
        return first
    found = Arrangement(_root(folder))
    if found.root != folder:
        found.told.append(f"{folder}: read from {found.root.relative_to(folder).as_posix()}")
    named = _split_folders(found.root)
    flat: dict[str, Path] = {}
    for split, place in named.items():
        files = _split(found, split, place, flat)
        found.read.add(place)
        if files:
            found.splits[split] = files
    if not named:
        _without_splits(found, flat, labels)
    elif not found.splits and not flat:
        odd = next(iter(named.values()))
        raise InputError(_no_classes(odd))
    _add_flat(found, folder, flat, labels)
    _say_what_is_left(found, folder)
    _order_classes(found, folder)
    return found


# --- where the splits are -------------------------------------------------------------------------


def visible(folder: Path) -> list[Path]:
    """What a folder holds, hidden names left out, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def folders(folder: Path) -> list[Path]:
    """The folders in a folder; InputError at a link that leads nowhere, perhaps to a class."""
    try:
        found = [path for path in visible(folder) if path.is_dir() or not path.exists()]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    for path in found:
        if not path.exists():
            raise InputError(f"{path}: is a link that leads nowhere; mend or remove it")
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def holds_pictures(folder: Path) -> bool:
    """Whether a folder holds image files itself, by their names."""
    return any(_is_picture(path) for path in visible(folder))


def _split_named(name: str) -> str | None:
    """The split that a folder is for, by a word of its name: `train`, `ILSVRC2012_img_val`."""
    words = re.split(r"[\W_\d]+", name.lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def _says_no_more(name: str) -> bool:
    """Whether a name says the split, and otherwise only that these are images."""
    words = filter(None, re.split(r"[\W_\d]+", name.lower()))
    return all(word in SPLIT_WORDS or word in PLAIN_WORDS for word in words)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order of the splits.

    A class may be called "train" (there is one in CIFAR-100): it holds images, not folders, and
    stands beside folders of other names.

    Raises:
        InputError: two folders for one split.
    """
    inside = folders(root)
    exact = [path for path in inside if path.name.lower() in SPLIT_WORDS]
    loose = [path for path in inside if path not in exact and _split_named(path.name)]
    plain = exact + [path for path in loose if _says_no_more(path.name)]
    if any(map(folders, exact)):
        candidates = exact  # a flat one beside others is a split too
    elif exact and len(plain) == len(inside):
        candidates = plain
    else:
        candidates = [path for path in loose if _leads(path)]
        flat = [path for path in loose if path not in candidates and holds_pictures(path)]
        # "test tube" may be a class; `ILSVRC2012_img_val` is none.
        candidates += [path for path in flat if candidates or _says_no_more(path.name)]
    found: dict[str, Path] = {}
    for path in candidates:
        split = _split_named(path.name) or SPLIT_WORDS[path.name.lower()]
        if split in found:
            both = sorted([found[split].name, path.name], key=len, reverse=True)
            raise InputError(f"{root}: has both {both[0]} and {both[1]}; keep one of them")
        found[split] = path
    return {split: found[split] for split in SPLITS if split in found}


def _root(folder: Path) -> Path:
    """The folder that holds splits or classes: this one, or one further in.

    Raises:
        InputError: several in it do.
    """
    for _ in range(3):
        inside = folders(folder)
        if _split_folders(folder) or holds_pictures(folder):
            return folder
        if sum(map(_is_class, inside)) > 1:
            return folder
        deeper = [path for path in inside if _leads(path)]
        if len(deeper) > 1 and not any(map(_is_class, inside)):
            names = " and ".join(path.name for path in deeper[:3])
            raise InputError(f"{folder}: several folders hold classes, {names}; give one of them")
        if len(deeper) != 1 or (len(inside) > 1 and any(map(_is_class, inside))):
            return folder
        folder = deeper[0]
    return folder


def _is_class(folder: Path) -> bool:
    """Whether a folder holds images, itself or in its `images`."""
    inner = [path for path in folders(folder) if path.name.lower() in INNER]
    return holds_pictures(folder) or (len(inner) == 1 and holds_pictures(inner[0]))


def _leads(folder: Path, depth: int = 2) -> bool:
    """Whether splits or classes are in a folder, or further in."""
    inside = folders(folder)
    if any(map(_is_class, inside)):
        return True
    return depth > 0 and any(_leads(path, depth - 1) for path in inside)


def _class_first(folder: Path) -> Arrangement | None:
    """`DIR/CLASS/train/*`, where every class holds its own splits; None for anything else."""
    inside = folders(folder)
    held = {path: _split_folders(path) for path in inside if not holds_pictures(path)}
    flat = [place for splits in held.values() for place in splits.values()]
    if len(inside) < 2 or not all(held.get(path) for path in inside):
        return None
    if not all(holds_pictures(place) and not folders(place) for place in flat):
        return None
    found = Arrangement(folder, told=[f"{folder}: each class has its own splits"])
    found.read |= set(inside)
    for path, splits in held.items():
        name = shown(unicodedata.normalize("NFC", path.name))
        for split, place in splits.items():
            files = [each for each in visible(place) if each.suffix.lower() not in BESIDE]
            found.splits.setdefault(split, {})[name] = files
    _say_what_is_left(found, folder)
    _order_classes(found, folder)
    return found


# --- the classes of a split -----------------------------------------------------------------------


def _split(found: Arrangement, split: str, place: Path, flat: dict[str, Path]) -> Files | None:
    """The files of each class of a split; None where its images are in no class folders."""
    inside = folders(place)
    while len(inside) == 1 and not holds_pictures(place) and not _is_class(inside[0]):
        if not folders(inside[0]):
            break
        place, inside = inside[0], folders(inside[0])
    inner = [path for path in inside if path.name.lower() in INNER]
    if len(inside) == 1 and inner and not holds_pictures(place):  # Tiny-ImageNet's val/images
        flat[split] = inner[0]
        return None
    if not inside:
        if not any(path.is_file() for path in visible(place)):
            if len(_split_folders(found.root)) == 1:
                raise InputError(_no_classes(place))
            found.lacking[split] = f"{place}: is empty"
            return None
        flat[split] = place
        return None
    loose = [path.name for path in visible(place) if not path.is_dir()]
    if loose:
        found.told.append(f"{place}: in no class folder, so not read: {_several(loose)}")
    return _classes(found, place)


def _no_classes(place: Path) -> str:
    return (
        f"{place}: holds no class folders; put the images of each class in a folder of its own,"
        f" such as {place / 'cat'}"
    )


def _classes(found: Arrangement, place: Path) -> Files:
    """The files of each class folder; whether they are images shows when they are read."""
    classes: Files = {}
    odd: list[str] = []
    for path in sorted(folders(place), key=lambda path: natural(path.name)):
        name = shown(unicodedata.normalize("NFC", path.name))
        held = visible(path)
        inner = [each for each in held if each.name.lower() in INNER and each.is_dir()]
        if len(inner) == 1 and not any(map(_is_picture, held)):
            odd += [f"{path.name}/{each.name}" for each in held if each not in inner]
            held = visible(inner[0])
        files = [each for each in held if each.suffix.lower() not in BESIDE]
        odd += [f"{path.name}/{each.name}" for each in held if each not in files]
        if not files:
            raise InputError(f"{path}: no images in this class; fill or remove the folder")
        if name in classes:
            raise InputError(f"{path}: another class folder beside it is called {name!r} too")
        classes[name] = files
    alike: dict[str, str] = {}
    for name in classes:
        other = alike.setdefault(name.casefold(), name)
        if other != name:
            found.told.append(f"{place}: classes {other!r} and {name!r} differ only by case")
    if odd:
        found.told.append(f"{place}: no images, so not read: {_several(odd)}")
    return classes


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(shown(name) for name in names[:_TOLD]) + more


def _without_splits(found: Arrangement, flat: dict[str, Path], labels: str | Path | None) -> None:
    """Class folders alone, or images alone with a file of labels; which split, by the folder's own
    name."""
    root = found.root
    own = SPLIT_WORDS.get(root.resolve().name.lower())
    inside = folders(root)
    if holds_pictures(root) and (labels is not None or not inside):
        flat[own or "test"] = root
        return
    if len(inside) == 1 and inside[0].name.lower() in INNER and holds_pictures(inside[0]):
        flat[own or "test"] = inside[0]
        found.read.add(inside[0])
        return
    files = _classes(found, root)
    found.read |= set(folders(root))
    if own in ("validation", "test"):
        found.splits[own] = files
        found.told.append(f"{root}: taken as the {own} split, by its name")
    else:
        found.splits["all"] = files


# --- images in no class folders -------------------------------------------------------------------


def _add_flat(
    found: Arrangement, folder: Path, flat: Mapping[str, Path], labels: str | Path | None
) -> None:
    """The splits whose images are in one folder, by a file of labels.

    Raises:
        InputError: `labels` fits none of them; there are no other splits, and no labels.
    """
    if labels is not None and not flat:
        raise InputError(f"{folder}: --labels {labels}: its images are in class folders already")
    known = {name for files in found.splits.values() for name in files}
    for split, place in flat.items():
        # Tiny-ImageNet's annotations stand above its folder of images.
        where = place.parent if place.name.lower() in INNER and place != found.root else place
        path = Path(labels) if labels is not None and _is_meant(flat, split) else None
        path = path or beside(where, where.parent, folder)
        files = [each for each in visible(place) if each.suffix.lower() not in BESIDE]
        files = [each for each in files if not each.is_dir()]
        found.read |= set(files)
        if path is None:
            why = f"{place}: its images have no labels; give a file of them by --labels"
            found.lacking[split] = why
            found.told.append(why)
            continue
        table = read_table(path)
        files.sort(key=lambda path: natural(path.name))
        found.splits[split] = _by_class(found, table, files, place, known)
        found.tables.add(split)
        found.read.add(path)
        found.told.append(f"{place}: labels from {shown(path)}")
    if not found.splits:
        raise InputError(
            f"{_no_classes(min(flat.values()))}, or give their labels by --labels FILE"
        )


def _is_meant(flat: Mapping[str, Path], split: str) -> bool:
    """Whether a named file of labels is for this split: the first to be evaluated."""
    return split == next(each for each in ("test", "validation", "train") if each in flat)


def _by_class(
    found: Arrangement, table: LabelTable, files: list[Path], place: Path, known: set[str]
) -> Files:
    """The files of each class, by a table."""
    labels = table.labels(files, place)
    if not files:
        raise InputError(f"{place}: holds no images")
    order = sorted(known, key=natural)
    classes: Files = {}
    for file, label in zip(files, labels, strict=True):
        name = str(label)
        if not table.named and known and name not in known:
            if int(label) >= len(order):
                raise InputError(
                    f"{table.path}: label {label} of {file.name}, of only {len(order)} classes"
                )
            name = order[int(label)]
        classes.setdefault(name, []).append(file)
    if not table.named and not known:
        for number in range(max(map(int, classes)) + 1):  # every number is a class
            classes.setdefault(str(number), [])
    elif not table.named and not set(map(str, labels)) <= known:
        found.told.append(f"{table.path}: numbers taken as the classes in their order")
    return classes


# --- what is left ---------------------------------------------------------------------------------


def _say_what_is_left(found: Arrangement, folder: Path) -> None:
    """A line on what stands beside the splits or classes and is not read."""
    left = [path.name for path in visible(found.root) if path not in found.read]
    if found.root != folder:
        deeper = folder / found.root.relative_to(folder).parts[0]
        left += [path.name for path in visible(folder) if path not in {deeper, *found.read}]
    left = [name for name in left if name not in CLASS_LISTS]
    if left:
        found.told.append(f"{folder}: beside the images, not read: {_several(left)}")


def _order_classes(found: Arrangement, folder: Path) -> None:
    """The classes, the same in every split, sorted by name; synsets by what they are called.

    Raises:
        InputError: a class that is in another split, and not in `train`.
    """
    splits = found.splits
    first = next(split for split in ("train", "all", "validation", "test") if split in splits)
    names = set(splits[first])
    for split, files in splits.items():
        renamed = {name: _same(name, names) for name in files}
        if len(set(renamed.values())) == len(renamed):
            splits[split] = files = {renamed[name]: held for name, held in files.items()}
            found.told += [
                f"{folder}: {old!r} of {split} is {new!r} of {first}"
                for old, new in renamed.items()
                if old != new
            ]
        missing = sorted(names ^ set(files), key=natural)
        if not names >= set(files):
            here, there = (first, split) if missing[0] in names else (split, first)
            raise InputError(f"{folder}: class {missing[0]!r} is in {here} but not in {there}")
        if missing and split not in found.tables:  # a file of labels may well be of a sample
            found.told.append(
                f"{folder}: {split} has no folder for {len(missing)} of {len(names)} classes, so no"
                f" images of them: {_several(missing)}"
            )
        splits[split] = {name: files.get(name, []) for name in names}
    whole = all(re.fullmatch(r"-?[0-9]{1,9}", name) for name in names)
    found.classes = sorted(names, key=natural)
    if whole:  # −1 before 0
        found.classes.sort(key=int)
    if found.classes == [str(number) for number in range(len(names))]:
        found.named = False
    _name_synsets(found, folder)


def _same(name: str, names: set[str]) -> str:
    """The one of these names that is the same but for case."""
    if name in names:
        return name
    alike = [each for each in names if each.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else name


def _name_synsets(found: Arrangement, folder: Path) -> None:
    """Classes that are synsets take their names, where a list of them stands beside."""
    if not all(SYNSET.fullmatch(name) for name in found.classes):
        return
    places = dict.fromkeys([found.root, folder, found.root.parent])
    files = [place / name for place in places for name in WORDS if os.path.isfile(place / name)]
    if not files:
        return
    called: dict[str, tuple[str, ...]] = {}
    for line in read_text(files[0]).splitlines() if files[0].suffix == ".txt" else ():
        synset = SYNSET.match(line)
        if synset and synset[0] in set(found.classes):
            words = line[synset.end() :].strip(" \t,;:")
            called[synset[0]] = (words.partition(",")[0].strip(), words)
    if files[0].suffix == ".json":
        called = {words[0]: words[1:] for words in read_class_order(files[0]) if len(words) > 1}
    if not set(found.classes) <= called.keys():
        return
    short = [shown(called[name][0]) for name in found.classes]
    names = [
        own if own and short.count(own) == 1 else f"{own} ({synset})"
        for synset, own in zip(found.classes, short, strict=True)
    ]
    found.also = {
        name: (synset, *called[synset]) for name, synset in zip(names, found.classes, strict=True)
    }
    new = dict(zip(found.classes, names, strict=True))
    found.splits = {
        split: {new[name]: held for name, held in files.items()}
        for split, files in found.splits.items()
    }
    found.classes = names
    found.told.append(f"{folder}: names of the synsets from {files[0].name}")


def has_pictures(folder: Path, depth: int = 4) -> bool:
    """Whether there are image files in a folder, or in one further in."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return False
    if any(Path(entry.name).suffix.lower() in PICTURES for entry in entries):
        return True
    inside = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return depth > 0 and any(has_pictures(Path(path), depth - 1) for path in inside)
