"""Every kind of model and of data: does it work, and what is said?

    python benchmarks/kinds.py [--only PATTERN] [--show] [--libraries DIR]

Each kind is a small function below, a maker: it writes the files of one kind into an empty folder,
and gives the words of the command that takes them. The command is `holdfast evaluate` with one step
of an attack on a few images; it runs there in a process of its own, as on the command line. Kept
are its exit status, and each line that it said. Kinds of the same network also say whether all
verdicts are those of its checkpoint folder.

`--show` prints what is found and writes nothing. With `--only`, other kinds keep what was found of
them before; each says which commit it was tried with. A new kind is a new maker.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import multiprocessing
import os
import pickle
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from holdfast.models import build, save_checkpoint
from holdfast.runs.environment import circumstances
from holdfast.runs.files import write_result

OUT = Path(__file__).resolve().parent / "results" / "kinds.json"
SCHEMA = "holdfast/kinds/1"
NAME = "small-cnn:width=8"
COMMON = ["--suite", "fgsm", "--limit", "40", "--out", "run", "--quiet"]
DIGITS = ["--data", "digits"]
SECONDS = 300  # that a kind may take
VERDICT = ("index", "label", "clean_prediction", "broken", "attack")  # columns of verdicts.csv


@dataclass(frozen=True)
class Kind:
    """One kind, and how to make it.

    Attributes:
        section: of the page.
        name: what it is.
        make: writes it into the working folder, and gives the words after `holdfast evaluate`.
        same: whether its network is that of the checkpoint folder.
    """

    section: str
    name: str
    make: Callable[[], list[str]]
    same: bool = False


KINDS: list[Kind] = []


def kind(section: str, name: str, same: bool = False) -> Callable[[Callable[[], list[str]]], None]:
    """Enter a maker among the kinds."""
    return lambda make: KINDS.append(Kind(section, name, make, same))


def network() -> nn.Module:
    """The network of most kinds: 8×8 grey images to ten logits."""
    torch.manual_seed(0)
    return build("small-cnn", {"width": 8}).eval()


def state() -> dict[str, torch.Tensor]:
    return dict(network().state_dict())


def behind(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


# --- models ------------------------------------------------------------------------------------

FOLDERS, CODE, WEIGHTS = "Folders and names", "Code", "Weights alone"
PUBLISHED, PROGRAMS, BOXES = "Published networks", "Programs", "Black boxes"
BAD = "Models that are refused"


def checkpoint(folder: str) -> None:
    card = {"architecture": "small-cnn", "arguments": {"width": 8}}
    save_checkpoint(folder, network(), {**card, "classes": [str(i) for i in range(10)]})


@kind(FOLDERS, "a checkpoint folder", same=True)
def _() -> list[str]:
    checkpoint("model")
    return ["model", *DIGITS]


@kind(FOLDERS, "a run folder", same=True)
def _() -> list[str]:
    checkpoint("run-before/model")
    return ["run-before", *DIGITS]


OWN = """
import torch
from holdfast.models import SmallCNN

def build():
    torch.manual_seed(0)
    return SmallCNN(width=8)

ready = build()

class Net(SmallCNN):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(width=8)

class Answer(Net):
    def forward(self, images):
        return {"logits": super().forward(images), "features": images}

class Pair(Net):
    def forward(self, images):
        return super().forward(images), images

def plain():
    model = build().eval()
    return lambda images: model(images)
"""


def _own(name: str) -> list[str]:
    Path("mine.py").write_text(OWN)
    return [name, *DIGITS]


for what, word, same in (
    ("a function that builds a model, in a file", "build", True),
    ("a class", "Net", True),
    ("a ready module", "ready", True),
    ("a function that gives a function", "plain", False),
    ("answers that are dictionaries", "Answer", True),
    ("answers that are tuples", "Pair", True),
):
    kind(CODE, what, same)(lambda word=word: _own(f"mine.py:{word}"))
kind(CODE, "a function of a module of the working folder", True)(lambda: _own("mine:build"))


def saved(file: str, held: object, **how: Any) -> list[str]:
    torch.save(held, file, **how)
    return [file, "--architecture", NAME, *DIGITS]


class Arguments(dict):
    """Hyper-parameters, as libraries pickle them."""


Held = Callable[[], list[str]]
WEIGHT_FILES: dict[str, Held] = {
    "a state dict": lambda: saved("weights.pth", state()),
    "`state_dict` inside, with an epoch": lambda: saved(
        "weights.pt", {"state_dict": state(), "epoch": 3}
    ),
    "`net` inside, of `DataParallel`": lambda: saved(
        "ckpt.pth", {"net": behind("module.", state()), "acc": 94.1}
    ),
    "of `torch.compile`": lambda: saved("weights.pth", behind("_orig_mod.", state())),
    "`ema` beside `model`": lambda: saved(
        "weights.pth",
        {"model": dict(build("small-cnn", {"width": 8}).state_dict()), "ema": state()},
    ),
    "of an `AveragedModel`": lambda: saved(
        "swa.pth", {"n_averaged": torch.tensor(5), **behind("module.", state())}
    ),
    "a student beside a teacher": lambda: saved(
        "last.ckpt",
        {"state_dict": {**behind("student.", state()), "teacher.fc.weight": torch.zeros(3, 3)}},
    ),
    "of Lightning, with pickled hyper-parameters": lambda: saved(
        "epoch=3.ckpt",
        {
            "state_dict": behind("model.", state()),
            "hyper_parameters": Arguments(lr=0.1),
            "callbacks": {},
        },
    ),
    "with `argparse`'s arguments and numpy's numbers": lambda: saved(
        "best.pth.tar",
        {"state_dict": state(), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9)},
    ),
    "the whole model, pickled": lambda: saved("model.pth", network()),
    "of before torch 1.6": lambda: saved(
        "ckpt.t7", {"net": state()}, _use_new_zipfile_serialization=False
    ),
}
for what, make in WEIGHT_FILES.items():
    kind(WEIGHTS, what, True)(make)


@kind(WEIGHTS, "in half precision")
def _() -> list[str]:
    return saved(
        "half.pth", {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    )


@kind(WEIGHTS, "`.safetensors`", same=True)
def _() -> list[str]:
    from safetensors.torch import save_file

    save_file(state(), "weights.safetensors")
    return ["weights.safetensors", "--architecture", NAME, *DIGITS]


def parts() -> None:
    from safetensors.torch import save_file

    names = list(state())
    files = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: state()[name] for name in held}, file)
    listed = {name: file for file, held in files.items() for name in held}
    Path("model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


@kind(WEIGHTS, "in parts, with an index", same=True)
def _() -> list[str]:
    parts()
    return ["model.safetensors.index.json", "--architecture", NAME, *DIGITS]


@kind(WEIGHTS, "`.npz`, an array for each weight", same=True)
def _() -> list[str]:
    np.savez("weights.npz", **{name: value.numpy() for name, value in state().items()})
    return ["weights.npz", "--architecture", NAME, *DIGITS]


@kind(WEIGHTS, "for a network of one's own", same=True)
def _() -> list[str]:
    Path("mine.py").write_text(OWN)
    torch.save(state(), "weights.pth")
    return ["weights.pth", "--architecture", "mine.py:Net", *DIGITS]


# Published names: our own weights, under the names that publications give them.
THEIRS = {
    "preact-resnet-kuangliu": (
        {"width": 4},
        {"stem": "conv1", "norm": "bn", "linear": "linear", "stages": "layer{}.{}", "first": 1,
         "norm1": "bn1", "norm2": "bn2", "conv1": "conv1", "conv2": "conv2",
         "shortcut": "shortcut.0"},
    ),
    "wide-resnet-trades": (
        {"depth": 10, "widen": 1},
        {"stem": "conv1", "norm": "bn1", "linear": "fc", "stages": "block{}.layer.{}", "first": 1,
         "norm1": "bn1", "norm2": "bn2", "conv1": "conv1", "conv2": "conv2",
         "shortcut": "convShortcut"},
    ),
    "wide-resnet-deepmind": (
        {"depth": 10, "widen": 1},
        {"stem": "init_conv", "norm": "batchnorm", "linear": "logits",
         "stages": "layer.{}.block.{}", "first": 0, "norm1": "batchnorm_0",
         "norm2": "batchnorm_1", "conv1": "conv_0", "conv2": "conv_1", "shortcut": "shortcut"},
    ),
    "preact-resnet-deepmind": (
        {"width": 4},
        {"stem": "conv_2d", "norm": "batchnorm", "linear": "logits", "stages": "layer_{}.{}",
         "first": 0, "norm1": "batchnorm_0", "norm2": "batchnorm_1", "conv1": "conv_2d_1",
         "conv2": "conv_2d_2", "shortcut": "shortcut"},
    ),
    "resnet": (
        {"width": 4},
        {"stem": "conv1", "norm": "bn1", "linear": "linear", "stages": "layer{}.{}", "first": 1,
         "norm1": "bn1", "norm2": "bn2", "conv1": "conv1", "conv2": "conv2",
         "shortcut": "shortcut"},
    ),
}  # fmt: skip


def published(name: str) -> list[str]:
    """A file of a publication's names and shapes, of grey images."""
    options, names = THEIRS[name]
    grey = {"channels": 1}
    torch.manual_seed(0)
    weights = build(name, options | grey).state_dict()
    stages = 3 if "wide" in name else 4
    count = len({key.split(".")[1] for key in weights if key.startswith("blocks.")}) // stages
    theirs = {}
    for key, value in weights.items():
        first, *rest = key.split(".")
        if first == "blocks":
            stage, place = divmod(int(rest[0]), count)
            group = names["stages"].format(stage + names["first"], place)
            theirs[".".join([group, names[rest[1]], *rest[2:]])] = value
        elif first != "normalise":
            theirs[".".join([names[first], *rest])] = value
    torch.save({"state_dict": behind("module.", theirs)}, "published.pt")
    written = ",".join(f"{key}={value}" for key, value in (options | grey).items())
    return ["published.pt", "--architecture", f"{name}:{written}", *DIGITS]


for architecture in THEIRS:
    kind(PUBLISHED, f"under the names of `{architecture}`")(
        lambda architecture=architecture: published(architecture)
    )


@kind(BAD, "a published network without `--architecture`")
def _() -> list[str]:
    return [published("wide-resnet-trades")[0], *DIGITS]


@kind(PROGRAMS, "TorchScript", same=True)
def _() -> list[str]:
    torch.jit.trace(network(), torch.rand(2, 1, 8, 8)).save("script.pt")
    return ["script.pt", *DIGITS]


@kind(PROGRAMS, "`torch.export`", same=True)
def _() -> list[str]:
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(network(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, "program.pt2")
    return ["program.pt2", *DIGITS]


class Handler(BaseHTTPRequestHandler):
    """Answers the plain JSON of docs/black-boxes.md."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        values = np.frombuffer(base64.b64decode(asked["data"]), "<f4").reshape(asked["shape"])
        with torch.no_grad():
            scores = network()(torch.from_numpy(values.copy())).tolist()
        answer = json.dumps({"logits": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@kind(BOXES, "an address")
def _() -> list[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return [f"http://127.0.0.1:{server.server_port}", *DIGITS, "--queries", "50"]


class Attack:
    """Pickles as a call of `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch fooled",)


BAD_FILES: dict[str, Held] = {
    "weights without `--architecture`": lambda: [saved("weights.pth", state())[0], *DIGITS],
    "weights of another size": lambda: [
        saved("weights.pth", state())[0], "--architecture", "small-cnn:width=16", *DIGITS,
    ],
    "an architecture that is misspelt": lambda: [
        saved("weights.pth", state())[0], "--architecture", "smal-cnn", *DIGITS,
    ],
    "weights that are not finite": lambda: saved(
        "weights.pth", {**state(), "linear.bias": torch.full((10,), float("nan"))}
    ),
    "a file that would run code": lambda: saved("weights.pth", {"net": state(), "x": Attack()}),
    "no weights at all": lambda: saved("weights.pth", {"epoch": 3}),
}  # fmt: skip
for what, make in BAD_FILES.items():
    kind(BAD, what)(make)


@kind(BAD, "a pickle that would run code")
def _() -> list[str]:
    Path("weights.bin").write_bytes(pickle.dumps(Attack()))
    return ["weights.bin", "--architecture", NAME, *DIGITS]


@kind(BAD, "arrays of objects")
def _() -> list[str]:
    np.savez("weights.npz", x=np.array([Attack()], dtype=object))
    return ["weights.npz", "--architecture", NAME, *DIGITS]


@kind(BAD, "a part that is missing")
def _() -> list[str]:
    parts()
    Path("model-2-of-2.safetensors").unlink()
    return ["model.safetensors.index.json", "--architecture", NAME, *DIGITS]


@kind(BAD, "a damaged file")
def _() -> list[str]:
    saved("weights.pth", state())
    Path("weights.pth").write_bytes(Path("weights.pth").read_bytes()[:1000])
    return ["weights.pth", "--architecture", NAME, *DIGITS]


@kind(BAD, "a damaged program")
def _() -> list[str]:
    Path("program.pt2").write_bytes(b"PK\x03\x04")
    return ["program.pt2", *DIGITS]


@kind(BAD, "a folder without a model")
def _() -> list[str]:
    Path("empty").mkdir()
    return ["empty", *DIGITS]


kind(BAD, "a name that is misspelt")(lambda: ["cifar10-linf-slum", *DIGITS])
kind(BAD, "code that is not there")(lambda: ["nowhere.py:build", *DIGITS])
kind(BAD, "code without that name")(lambda: _own("mine.py:built"))


# --- models of other libraries -----------------------------------------------------------------

LIBRARIES = "Other libraries"
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def complete_torchvision() -> torch.library.Library:
    """What a torchvision that was built for another torch lacks before it can be imported."""
    held = torch.library.Library("torchvision", "FRAGMENT")
    for schema in OPERATORS:
        held.define(schema)
    return held


@kind(LIBRARIES, "`onnx:FILE`", same=True)
def _() -> list[str]:
    shapes = ({0: torch.export.Dim("n")},)
    torch.onnx.export(
        network(), (torch.rand(2, 1, 8, 8),), "model.onnx", dynamic_shapes=shapes, verbose=False
    )
    return ["onnx:model.onnx", *DIGITS]


@kind(LIBRARIES, "`timm:NAME,weights=FILE`")
def _() -> list[str]:
    import timm

    made = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    torch.save(made.state_dict(), "weights.pth")
    return ["timm:test_resnet,num_classes=10,in_chans=1,weights=weights.pth", *DIGITS]


@kind(LIBRARIES, "`torchvision:NAME,weights=FILE`")
def _() -> list[str]:
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), "weights.pth")
    model = "torchvision:squeezenet1_1,num_classes=2,weights=weights.pth"
    asked = pictures("train/cat", "train/dog", "test/cat", "test/dog")[1:]
    return [model, *asked, "--limit", "4"]  # the network takes them at 224 × 224


@kind(LIBRARIES, "`transformers:FOLDER`")
def _() -> list[str]:
    import transformers

    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=3, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, num_labels=2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    asked = pictures("train/cat", "train/dog", "test/cat", "test/dog")[1:]
    return ["transformers:vit", "--mean", "0.5", "--std", "0.5", *asked]


kind(LIBRARIES, "`robustbench:NAME`")(lambda: ["robustbench:Standard", *DIGITS])


# --- data --------------------------------------------------------------------------------------

IMAGES, FILES, CHOICES = "Folders of images", "Files of images", "Which images, and how"
BAD_DATA = "Data that are refused"


def model_for(classes: int, channels: int = 3) -> list[str]:
    """A model of any size of images."""
    Path("mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    N = torch.nn\n"
        f"    head = N.Linear({16 * channels}, {classes})\n"
        "    return N.Sequential(N.AdaptiveAvgPool2d(4), N.Flatten(), head)\n"
    )
    return ["mine.py:build", "--data", "data"]


def picture(path: str, seed: int, size: int = 16) -> None:
    file = Path("data") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def pictures(*folders: str, count: int = 12, ending: str = "png") -> list[str]:
    for f, folder in enumerate(folders):
        for i in range(count):
            picture(f"{folder}/{i:03d}.{ending}", 1000 * f + i)
    return model_for(len({Path(folder).name for folder in folders}))


ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "`train/` and `test/`": ("train/cat", "train/dog", "test/cat", "test/dog"),
    "`Training/`, `Validation/` and `Testing/`": tuple(
        f"{split}/{name}" for split in ("Training", "Validation", "Testing") for name in ("a", "b")
    ),
    "`train/`, `dev/` and `eval/`": tuple(
        f"{split}/{name}" for split in ("train", "dev", "eval") for name in ("a", "b")
    ),
    "only `test/`": ("test/cat", "test/dog"),
    "only `val/`, by synset": ("val/n01440764", "val/n01443537"),
    "classes without a split": ("cat", "dog", "owl"),
    "one level deeper": ("images/train/cat", "images/train/dog", "images/test/cat",
                         "images/test/dog"),
    "numbers as names": tuple(f"test/{i}" for i in (1, 2, 10)),
}  # fmt: skip
for what, folders in ARRANGEMENTS.items():
    split = ["--split", "validation"] if what.startswith("only `val/`") else []
    kind(IMAGES, what)(lambda folders=folders, split=split: [*pictures(*folders), *split])


@kind(IMAGES, "a split and a folder that is none")
def _() -> list[str]:
    return pictures("train/cat", "train/dog", "test/cat", "test/dog", "extras/cat")


@kind(IMAGES, "Tiny-ImageNet")
def _() -> list[str]:
    names = ("n01443537", "n01629819")
    for f, name in enumerate(names):
        for i in range(8):
            picture(f"train/{name}/images/{name}_{i}.JPEG", 100 * f + i)
    for i in range(8):
        picture(f"val/images/val_{i}.JPEG", 900 + i)
    rows = "".join(f"val_{i}.JPEG\t{names[i % 2]}\t0\t0\t9\t9\n" for i in range(8))
    Path("data/val/val_annotations.txt").write_text(rows)
    Path("data/wnids.txt").write_text("\n".join(names) + "\n")
    return [*model_for(2), "--split", "validation"]


@kind(IMAGES, "photographs of several sizes, `--image-size 16`")
def _() -> list[str]:
    for i in range(12):
        picture(f"test/{'cat' if i % 2 else 'dog'}/{i}.jpg", i, size=20 + i)
    return [*model_for(2), "--image-size", "16"]


kind(FILES, "the embedded digits")(lambda: [*model_for(10, channels=1)[:1], *DIGITS])


@kind(FILES, "CIFAR-10's own files")
def _() -> list[str]:
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {
            b"data": rng.integers(0, 256, (10_000, 3072), dtype=np.uint8),
            b"labels": [i % 10 for i in range(10_000)],
            b"filenames": [f"{name}_{i}.png".encode() for i in range(10_000)],
        }
        (Path("data") / name).write_bytes(pickle.dumps(content, 2))
    meta = {b"label_names": [f"class{i}".encode() for i in range(10)]}
    Path("data/batches.meta").write_bytes(pickle.dumps(meta, 2))
    return model_for(10)


@kind(FILES, "CIFAR-100's own files")
def _() -> list[str]:
    rng = np.random.default_rng(0)
    Path("data").mkdir()
    for name, n in (("train", 500), ("test", 200)):
        content = {
            b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            b"fine_labels": [i % 100 for i in range(n)],
            b"coarse_labels": [i % 20 for i in range(n)],
            b"filenames": [f"{i}.png".encode() for i in range(n)],
        }
        (Path("data") / name).write_bytes(pickle.dumps(content, 2))
    return model_for(100)


@kind(FILES, "SVHN's `.mat` files")
def _() -> list[str]:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    Path("data").mkdir()
    for name in ("train_32x32", "test_32x32"):
        held = {"X": rng.integers(0, 256, (32, 32, 3, 50), dtype=np.uint8)}
        savemat(f"data/{name}.mat", held | {"y": (np.arange(50) % 10 + 1)[:, None]})
    return model_for(10)


def arrays(shape: tuple[int, ...], kind: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (40, *shape))
    return (values / 255).astype(kind) if issubclass(kind, np.floating) else values.astype(kind)


def npz(**held: np.ndarray) -> list[str]:
    np.savez("data.npz", **held)
    return ["mine.py:build", "--data", "data.npz"]


LABELS = np.arange(40) % 3


@kind(FILES, "`.npz`, N×H×W×C of 8 bits")
def _() -> list[str]:
    model_for(3)
    return npz(images=arrays((16, 16, 3)), labels=LABELS)


@kind(FILES, "`.npz`, N×C×H×W in [0, 1]")
def _() -> list[str]:
    model_for(3)
    return npz(x_test=arrays((3, 16, 16), np.float32), y_test=LABELS)


@kind(FILES, "`images.npy` and `labels.npy`, grey")
def _() -> list[str]:
    Path("data").mkdir()
    np.save("data/images.npy", arrays((16, 16)))
    np.save("data/labels.npy", LABELS)
    return model_for(3, channels=1)


@kind(FILES, "Parquet, as Hugging Face stores it")
def _() -> list[str]:
    import io

    import pyarrow
    import pyarrow.parquet

    rows = []
    for pixels in arrays((16, 16, 3)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    table = pyarrow.table({"image": rows, "label": LABELS.tolist()})
    Path("data").mkdir()
    pyarrow.parquet.write_table(table, "data/test-00000-of-00001.parquet")
    return model_for(3)


CHOSEN: dict[str, list[str]] = {
    "`--split all`": ["--split", "all"],
    "`--indices 3,1,2`, in a file": ["--indices", "chosen.txt"],
    "`--balanced`": ["--balanced"],
    "`--grey`": ["--grey"],
    "`--image-size 8`": ["--image-size", "8"],
    "`--class-order FILE`": ["--class-order", "order.txt"],
}


def chosen(words: list[str]) -> list[str]:
    command = pictures("test/cat", "test/dog", "train/cat", "train/dog")
    Path("chosen.txt").write_text("3\n1\n2\n")
    Path("order.txt").write_text("dog\ncat\n")
    if "--grey" in words:
        model_for(2, channels=1)
    return [*command, *words]


for what, words in CHOSEN.items():
    kind(CHOICES, what)(lambda words=words: chosen(words))


@kind(BAD_DATA, "a folder that is not there")
def _() -> list[str]:
    return model_for(2)


@kind(BAD_DATA, "an empty folder")
def _() -> list[str]:
    Path("data").mkdir()
    return model_for(2)


@kind(BAD_DATA, "images of several sizes")
def _() -> list[str]:
    command = pictures("test/cat", "test/dog")
    picture("test/dog/large.png", 5, size=20)
    return command


@kind(BAD_DATA, "a file that is no image")
def _() -> list[str]:
    command = pictures("test/cat", "test/dog")
    Path("data/test/dog/broken.png").write_bytes(b"no image")
    return command


@kind(BAD_DATA, "classes that the model does not have")
def _() -> list[str]:
    command = pictures("test/a", "test/b", "test/c")
    model_for(2)
    return command


@kind(BAD_DATA, "`.npz` without labels")
def _() -> list[str]:
    model_for(3)
    return npz(images=arrays((16, 16, 3)))


@kind(BAD_DATA, "arrays of objects")
def _() -> list[str]:
    model_for(3)
    return npz(images=np.array([Attack()] * 3, dtype=object), labels=LABELS[:3])


# --- trying each -------------------------------------------------------------------------------


def run_here(words: list[str], out: str, err: str) -> None:
    """Run the command line in this process, with what it prints in two files."""
    from holdfast.cli import main

    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream.fileno())
    sys.argv = ["holdfast", *words]
    sys.path.insert(0, "")
    main()


def tried(kind: Kind, expected: list[list[str]] | None) -> dict[str, Any]:
    """What comes of one kind.

    Args:
        expected: the verdicts of the checkpoint folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            words = ["evaluate", *COMMON, *kind.make()]
        except (ImportError, RuntimeError) as error:  # a library that is not there, or not whole
            os.chdir("/")
            return {**_named(kind), "status": None, "said": [f"not tried here: {error}"]}
        process = multiprocessing.get_context("fork").Process(
            target=run_here, args=(words, "stdout", "stderr")
        )
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        said = [*Path("stdout").read_text().splitlines(), *Path("stderr").read_text().splitlines()]
        found = verdicts(Path("run/verdicts.csv"))
        fooled = Path("fooled").exists()
        os.chdir("/")
    lines = [line for line in said if line.startswith(("note: ", "holdfast: "))]
    asked = words[1 + len(COMMON) :]
    return {
        **_named(kind),
        "asked": _general(shlex.join(asked), scratch),
        "status": process.exitcode,
        "said": [_general(line.partition(": ")[2], scratch) for line in lines],
        "traceback": any("Traceback" in line for line in said) or fooled,
        "same": found == expected if kind.same and expected is not None else None,
        "verdicts": found,
    }


def verdicts(file: Path) -> list[list[str]] | None:
    """The verdict of each image, if there are any: rounding moves confidences, but no verdict."""
    if not file.exists():
        return None
    with file.open() as lines:
        return [[row[name] for name in VERDICT] for row in csv.DictReader(lines)]


def _named(kind: Kind) -> dict[str, Any]:
    return {
        "section": kind.section,
        "name": kind.name,
        "asked": "",
        "traceback": False,
        "same": None,
    }


def _general(line: str, scratch: str) -> str:
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", line)
    return line.replace(os.path.realpath(scratch) + "/", "").replace(scratch + "/", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="kinds whose 'section: name' has this expression in it"
    )
    parser.add_argument("--show", action="store_true", help="print, and write nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--libraries",
        help="a folder where more Python libraries lie, timm and torchvision among them",
    )
    options = parser.parse_args()
    if options.libraries:
        sys.path.append(str(Path(options.libraries).resolve()))
        kept = complete_torchvision()  # noqa: F841  # as long as the program runs
    out = options.out.resolve()
    before = json.loads(out.read_text())["kinds"] if options.only and out.exists() else []
    torch.set_num_threads(1)
    where = circumstances("cpu")
    expected: list[list[str]] | None = None
    found = []
    for each in KINDS:
        if expected is not None and not re.search(options.only, f"{each.section}: {each.name}"):
            found += [k for k in before if (k["section"], k["name"]) == (each.section, each.name)]
            continue
        outcome = tried(each, expected)
        first = outcome.pop("verdicts", None)
        expected = expected or first  # the first kind is the checkpoint folder
        found.append({**outcome, "git": where["git"]})
        line = f"{outcome['status']} {each.section}: {each.name}"
        print(line, *outcome["said"], sep="\n    ", flush=True)
    if not options.show:
        write_result(out, {"schema": SCHEMA, **where, "kinds": found})


if __name__ == "__main__":
    main()
