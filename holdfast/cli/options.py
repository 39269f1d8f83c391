"""Arguments and options that several verbs share, as typer reads them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

_program: list[float] = []  # when it began; empty where a verb is called from Python


def begin_program() -> None:
    """This process is the program, and does one command: its time counts from its start on."""
    _program[:] = [time.monotonic() - time.process_time()]


def command_began() -> float | None:
    """When the program began, by `time.monotonic`; None where this process is not the program
    alone."""
    return _program[0] if _program else None


def _checked_seed(seed: int) -> int:
    # No typer range: its 40 digits would stand in every help text.
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"--seed must lie between -2^63 and 2^63 - 1, not at {seed}")
    return seed


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A checkpoint or run folder, a name from the zoo, package.module:function or "
        "path/file.py:function, a file of weights with --architecture, TorchScript, timm:NAME, "
        "torchvision:NAME, transformers:FOLDER, robustbench:NAME, onnx:FILE, or http://… (a black "
        "box); see docs/models.md."
    ),
]
DefenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defence",
        help="A defence in front of the model, such as jpeg:quality=75 or package.module:Class. "
        "May be repeated: they see the image in the order given.",
    ),
]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        help="What network a file of weights belongs to: NAME or NAME:key=value,… of Holdfast's, "
        "such as preact-resnet:depth=18, or path/file.py:function.",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="The mean by which the model's images are normalised: a number, or one a channel, in "
        "units of [0, 1], such as 0.485,0.456,0.406.",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", help="The standard deviation by which they are normalised, likewise."),
]
InputSizeOption = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        help="Height and width to which images are resized inside the model: 224, or 224x256.",
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="A file that says which of the model's outputs stand for which class of the data "
        "(JSON, or text with a line a class); see docs/models.md.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="The number format in which the model is run: float32, float16, bfloat16 or float64.",
    ),
]
NumbersOption = Annotated[
    str | None,
    typer.Option(
        "--outputs",
        help="What the model's numbers are: logits (as by default), or probabilities, of which the "
        "logarithm is taken.",
    ),
]
RunOption = Annotated[Path, typer.Option("--out", help="The run folder to write.")]
NormOption = Annotated[
    str | None,
    typer.Option(
        "--norm",
        help="Norm of the attacks: linf, l2 or l1 (evaluate also takes l0 and spatial). "
        "By default the one that the model was trained for, else linf.",
    ),
]
EpsOption = Annotated[
    str | None,
    typer.Option(
        "--eps",
        help="Radius of the attacks in image units, such as 8/255. "
        "By default the one that the model was trained for.",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="Use only N images: the first ones of CIFAR's files, a sample of a folder of images.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Which images: test, validation, train or all. By default test, or what there is "
        "where no test images are.",
    ),
]
IndicesOption = Annotated[
    str | None,
    typer.Option(
        "--indices",
        help="Use only these images of the split: a file with a number a line, counted from 0, a "
        "JSON list or .npy; their order is kept.",
    ),
]
BalancedOption = Annotated[
    bool, typer.Option("--balanced", help="Use as many images of each class.")
]
GreyOption = Annotated[bool, typer.Option("--grey", help="Bring images to one channel.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="Which labels: fine or coarse of CIFAR-100, a word in an array's name, or a file "
        "with a label for each image.",
    ),
]
ClassOrderOption = Annotated[
    str | None,
    typer.Option(
        "--class-order",
        help="A file with the classes in the model's order: a name or synset a line, or JSON.",
    ),
]
PixelsOption = Annotated[
    str | None,
    typer.Option("--pixels", help="What the pixels are, in words, to be kept in the result."),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="A folder with one folder a class, or with the files of CIFAR-10, CIFAR-100 or SVHN; "
        "an .npz or .npy file; or 'digits'. See docs/data.md.",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        help="Crop and resize images of your own to this height and width, in pixels. By default "
        "as the model was trained, or as they are.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Where to compute: cpu, cuda, … By default the best there is."),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", callback=_checked_seed, help="Seed of every random draw."),
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        help="A bound on a figure, such as 'robust>=40%'. The interval's lower end decides (for <= "
        "its upper end); exit status 3 if it is not met. May be repeated.",
    ),
]
JunitOption = Annotated[
    Path | None,
    typer.Option(
        "--junit", help="Also write the requirements' outcomes as JUnit XML to this file."
    ),
]
GoalOption = Annotated[
    str,
    typer.Option(
        "--goal",
        help="What counts as a success: untargeted, any mistake; or target, that the class of "
        "--targets is predicted.",
    ),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        "--targets",
        help="With --goal target: least-likely, most-likely or random, or a file with a class for "
        "every image (.csv, .txt, .npy, .npz).",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress on standard error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def model_options(options: Any, outputs: str | None) -> dict[str, Any]:
    """What the options of a verb say of its model, as `holdfast.load` takes it.

    Args:
        options: of the verb, with the fields `mean`, `std`, `input_size` and `dtype`.
        outputs: what the model's numbers are.
    """
    return {
        "architecture": options.architecture,
        "mean": options.mean,
        "std": options.std,
        "input_size": options.input_size,
        "outputs": outputs,
        "dtype": options.dtype,
    }
