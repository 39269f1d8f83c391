"""Files as strangers hand them over: weights, code in packages, lists of classes, placeholders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import image_folder
from torch import nn

import holdfast as hf
from holdfast import data
from holdfast.errors import InputError
from holdfast.models.answers import recognised
from holdfast.models.class_map import ByClass, class_map
from holdfast.models.registry import build
from holdfast.parsing import import_named

NAME = "small-cnn:width=8,classes=5"
GREY = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build("small-cnn", {"width": 8, "classes": 5}).eval()


def loaded(file: Path) -> nn.Module:
    return hf.load(file, architecture=NAME)


def refused(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        loaded(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"_forward_module.{name}",
        lambda name: f"_forward_module._orig_mod.{name}",
        lambda name: f"student.{name}",
        lambda name: f"my.own.wrapper.{name}",
        lambda name: ".".join([*name.split(".")[:-1], "_orig_mod", name.split(".")[-1]]),
        lambda name: (
            ".".join([*name.split(".")[:-1], "_checkpoint_wrapped_module", "weight"])
            if name.endswith("weight")
            else name
        ),
    ],
)
def test_names_of_wrappers_are_taken_off(network, tmp_path, renamed):
    state = {renamed(name): value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth")(GREY), network(GREY))


@pytest.mark.parametrize("left", ["total_ops", "{}.total_params", "criterion.weight", "n_averaged"])
def test_leftovers_are_left_out_and_named(network, tmp_path, capsys, left):
    state = network.state_dict()
    inner = next(iter(state)).rpartition(".")[0]
    torch.save(state | {left.format(inner): torch.zeros(1)}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth")(GREY), network(GREY))
    assert f"left out: {left.format(inner)}" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("around", [lambda s: s, lambda s: {"net": s, "best": np.float64(0.3)}])
def test_arrays_inside_torch_save_are_weights(network, tmp_path, protocol, around):
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    torch.save(around(state), tmp_path / "w.pth", pickle_protocol=protocol)
    assert torch.equal(loaded(tmp_path / "w.pth")(GREY), network(GREY))


def test_sparse_weights_are_filled_up(network, tmp_path, capsys):
    state = network.state_dict()
    kinds = (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr)
    flat = [name for name, value in state.items() if value.ndim == 2]
    for kind in kinds:
        torch.save(state | {name: kind(state[name]) for name in flat}, tmp_path / "w.pth")
        assert torch.equal(loaded(tmp_path / "w.pth")(GREY), network(GREY))
        assert "sparse weights filled up with zeros" in capsys.readouterr().err


def test_quantised_weights_with_their_scales_are_used(network, tmp_path, capsys):
    state = network.state_dict()
    name = next(name for name, value in state.items() if value.ndim == 2)
    quantised = torch.quantize_per_tensor(state[name], 0.01, 0, torch.qint8)
    torch.save(state | {name: quantised}, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth").state_dict()
    assert any(torch.equal(value, quantised.dequantize()) for value in found.values())
    assert "quantised weights multiplied by their scales" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.complex64])
def test_numbers_of_another_kind_are_refused(network, tmp_path, kind):
    state = network.state_dict()
    name = next(name for name, value in state.items() if value.ndim == 2)
    torch.save(state | {name: (state[name] * 100).to(kind)}, tmp_path / "w.pth")
    message = refused(tmp_path / "w.pth")
    assert repr(name) in message and str(kind).removeprefix("torch.") in message


def test_weights_without_numbers_are_refused(network, tmp_path):
    torch.save({n: v.to("meta") for n, v in network.state_dict().items()}, tmp_path / "w.pth")
    assert "has a shape and no numbers" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "an empty file"),
        (b"hello\n", "not what torch.save writes"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut off"),
        (LFS, "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"),
        (PAGE, "a web page, not the file itself"),
    ],
)
@pytest.mark.parametrize("ending", [".pth", ".ckpt", ".bin"])
def test_what_is_no_file_of_weights_is_told_by_what_it_is(tmp_path, content, line, ending):
    (tmp_path / f"w{ending}").write_bytes(content)
    assert line in refused(tmp_path / f"w{ending}")


@pytest.mark.parametrize("content", [LFS, PAGE])
@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "onnx:w.onnx", "w.pt2"])
def test_so_is_that_of_other_formats(tmp_path, monkeypatch, content, name):
    monkeypatch.chdir(tmp_path)
    Path(name.removeprefix("onnx:")).write_bytes(content)
    with pytest.raises(InputError, match=r"not the file itself"):
        hf.load(name, architecture=NAME if name.startswith("w.") and "pt2" not in name else None)


@pytest.mark.parametrize("content", [LFS, PAGE])
def test_so_is_that_of_images_and_arrays(tmp_path, content):
    image_folder(tmp_path / "folder" / "test", ("a", "b"), n=2)
    next((tmp_path / "folder").rglob("*.png")).write_bytes(content)
    (tmp_path / "x.npz").write_bytes(content)
    for given in (tmp_path / "folder", tmp_path / "x.npz"):
        with pytest.raises(InputError, match="not the file itself"):
            data.load(given)


def test_a_missing_file_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'gone.pth': there is no such file"):
        hf.load("gone.pth")
    with pytest.raises(InputError, match=r"'gone.pth' is no file"):
        hf.load("gone.pth", architecture=NAME)


# --- code -----------------------------------------------------------------------------------------

BUILD = "import torch\ndef build():\n    return torch.nn.Linear({}, 2)\n"


def package(top: Path) -> None:
    """A package with a sub-package, each of whose modules imports another one relatively."""
    for folder in (top, top / "sub"):
        folder.mkdir(parents=True)
    (top / "__init__.py").write_text("SIZE = 3\n")
    (top / "sizes.py").write_text("from . import SIZE\n")
    (top / "sub" / "__init__.py").write_text("from .net import build\n")
    (top / "sub" / "net.py").write_text("from ..sizes import SIZE\n" + BUILD.format("SIZE"))


@pytest.mark.parametrize("file", ["sub/__init__.py", "sub/net.py"])
def test_a_file_of_a_package_finds_its_neighbours(tmp_path, file):
    for name in ("one", "two"):  # packages of the same name in other folders are others
        package(tmp_path / name / "models")
    (tmp_path / "two" / "models" / "__init__.py").write_text("SIZE = 4\n")
    for name, size in (("one", 3), ("two", 4)):
        build = import_named(f"{tmp_path / name / 'models' / file}:build", "model")
        assert build().in_features == size


def test_a_relative_import_needs_no_package(tmp_path):
    (tmp_path / "sizes.py").write_text("SIZE = 5\n")
    (tmp_path / "my-net.py").write_text(
        BUILD.format("SIZE").replace("return", "from .sizes import SIZE\n    return")
    )
    assert import_named(f"{tmp_path / 'my-net.py'}:build", "model")().in_features == 5


@pytest.mark.parametrize(
    "code", ["import sys\nsys.exit(2)\n", "def build():\n    raise SystemExit('wants arguments')\n"]
)
def test_code_that_ends_the_program_ends_in_a_line(tmp_path, code):
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(InputError, match="SystemExit: "):
        hf.load(f"{tmp_path / 'net.py'}:build")
    with pytest.raises(InputError, match="SystemExit: "):
        (tmp_path / "w.pth").write_bytes(b"")
        hf.load(tmp_path / "w.pth", architecture=f"{tmp_path / 'net.py'}:build")


@pytest.mark.parametrize("calls", [0, 3], ids=["at once", "under attack"])
@pytest.mark.parametrize("wrong", [SystemExit(7), SystemExit("wants arguments"), SystemExit()])
def test_a_model_that_ends_the_program_ends_in_a_line(wrong, calls):
    asked = []

    def model(images):
        asked.append(len(images))
        if len(asked) > calls:
            raise wrong
        return images.flatten(1)[:, :10]

    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(InputError, match=r"cannot answer images of shape .*SystemExit"):
        hf.evaluate(model, images, labels, hf.Threat("linf", 0.1), "fgsm")


def test_a_file_of_code_without_a_name_tells_what_is_in_it(tmp_path):
    (tmp_path / "net.py").write_text(BUILD.format(3) + "class Net: ...\ndef _inner(): ...\n")
    with pytest.raises(InputError, match=r"net.py:NAME; it has build, Net$"):
        hf.load(tmp_path / "net.py")
    with pytest.raises(InputError, match=r"has no 'Nett'; did you mean 'Net'\?"):
        hf.load(f"{tmp_path / 'net.py'}:Nett")


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        ([torch.zeros(4, 10)], (0,)),
        ([torch.zeros(4, 7, 3, 3), torch.zeros(4, 10)], (1,)),
        ({"heads": [torch.zeros(4, 10), torch.zeros(4, 3)]}, ("heads", 0)),
        ([torch.zeros(10) for _ in range(4)], ()),  # a row an image: not read
        ([torch.zeros(4) for _ in range(4)], ()),
    ],
)
def test_lists_are_answers_like_tuples(answer, path):
    form = recognised(answer, 4)
    assert form.path == path
    if path:
        assert form.logits(answer).shape == (4, 10)


def test_a_model_that_answers_a_list_is_evaluated():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    result = hf.evaluate(lambda x: [network(x), x], images, labels, hf.Threat("linf", 0.1), "fgsm")
    assert result.n == 4


# --- lists of classes -----------------------------------------------------------------------------

OUTPUTS = ((2,), (0,))  # of cat and dog, where the model's outputs are dog, ship, cat


@pytest.mark.parametrize(
    "text",
    [
        "name,index\ncat,2\ndog,0\n",
        "cat,2\ndog,0\n",
        "index;name\n0;dog\n1;ship\n2;cat\n",
        'index,synset,name\n0,n00000001,"dog, hound"\n1,n00000002,ship\n2,n00000003,cat\n',
        "class\toutput\ndog\t0\ncat\t2\n",
        "cat = 2\ndog = 0\n",
    ],
)
def test_tables_of_names_and_numbers_are_read_by_their_numbers(tmp_path, text):
    (tmp_path / "classes.csv").write_text(text)
    assert class_map(tmp_path / "classes.csv", ["cat", "dog"]).outputs == OUTPUTS


@pytest.mark.parametrize("mark", [": ", "=", "\t"])
@pytest.mark.parametrize("between", [", ", ",", " ", "; "])
def test_several_outputs_of_a_named_class_are_no_table(tmp_path, mark, between):
    (tmp_path / "c.txt").write_text(f"cat{mark}5{between}2\ndog{mark}0{between}7\n")
    assert class_map(tmp_path / "c.txt", ["cat", "dog"]).outputs == ((5, 2), (0, 7))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("class,output\n0,2\n1,0\n", "numbers alone under the heading"),
        ("cat,2\ncat,0\n", "'cat' stands there twice"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, text, line):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(InputError, match=line):
        class_map(tmp_path / "classes.csv", ["cat", "dog"])


def test_a_list_of_all_outputs_needs_one_name_for_each():
    layer = ByClass(class_map(["outputs", "dog", "ship", "cat"], ["cat", "dog"]))
    assert layer(torch.zeros(2, 4)).shape == (2, 2)
    with pytest.raises(InputError, match=r"a list of 4 names.*the model has 5"):
        layer(torch.zeros(2, 5))


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("val", "validation"),
        ("Dev", "validation"),
        ("TEST", "test"),
        ("training", "train"),
        ("ALL", "all"),
    ],
)
def test_splits_go_by_any_of_their_names(asked, meant):
    dataset = data.load("digits", split=asked, limit=5)
    assert dataset.usual(asked) == meant
    assert len(dataset.split(dataset.usual(asked))) == 5


@pytest.mark.parametrize("name", ["1.xmp", "0.png.aae", "files.sha256", "photo.pp3", "~a.tmp"])
def test_what_programs_leave_beside_pictures_is_left_out(tmp_path, name):
    image_folder(tmp_path / "test", ("a", "b"), n=3)
    (tmp_path / "test" / "a" / name).write_text("no picture")
    dataset = data.load(tmp_path)
    assert len(dataset.test) == 6
    assert any(name in line for line in dataset.told)


def test_a_class_without_images_in_test_is_said_and_keeps_its_number(tmp_path):
    image_folder(tmp_path / "train", ("a", "b", "c"), n=3)
    image_folder(tmp_path / "test", ("a", "c"), n=2)
    dataset = data.load(tmp_path)
    assert dataset.classes == ("a", "b", "c")
    assert sorted(set(dataset.test.labels.tolist())) == [0, 2]
    assert any(
        "test has no folder for 1 of 3 classes, so no images of them: b" in t for t in dataset.told
    )


def test_numbered_classes_stand_in_the_order_of_their_numbers(tmp_path):
    image_folder(tmp_path / "test", ("1", "-1", "10", "2"), n=2)
    assert data.load(tmp_path).classes == ("-1", "1", "2", "10")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("Digits", "did you mean 'digits'"),
        ("mnist", "only 'digits' goes by its name"),
        ("http://example.org/data.zip", "an address; download it"),
        ("", "--data is empty"),
        ("  ", "--data is empty"),
    ],
)
def test_data_that_is_not_there_is_told_by_what_was_meant(tmp_path, monkeypatch, given, line):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "test", ("a", "b"), n=2)
    with pytest.raises(InputError, match=line):
        data.load(given)


@pytest.mark.parametrize("grey", [True, False])
def test_grey_images_in_three_channels_name_the_option(grey):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))
    images = torch.rand(4, 1 if grey else 3, 8, 8).expand(4, 3, 8, 8)
    with pytest.raises(InputError) as caught:
        hf.evaluate(model, images, torch.arange(4), hf.Threat("linf", 0.1), "fgsm")
    assert ("--grey" in str(caught.value)) is grey


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (np.array(3), "shape of a single number is none of images"),
        (np.zeros((4, 784), np.uint8), "rows of pixels are to be reshaped"),
        (np.zeros((0, 8, 8), np.uint8), "holds 0 images"),
    ],
)
def test_arrays_that_are_no_images_are_told_by_their_shape(tmp_path, images, line):
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(4))
    with pytest.raises(InputError, match=line):
        data.load(tmp_path / "x.npz")
