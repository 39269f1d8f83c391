"""What setuptools cannot be told in pyproject.toml: recipes and two models of the zoo, which lie
beside the package in a checkout, travel inside it."""

from setuptools import find_packages, setup

MODELS = ("cifar10-linf-slim", "cifar10-standard-cpu")  # small, robust and accurate; 5 MB
BESIDE = {  # package → folder
    "holdfast.recipes": "recipes",
    **{f"holdfast.zoo.{name}": f"zoo/{name}" for name in MODELS},
}

setup(
    packages=[*find_packages(include=["holdfast", "holdfast.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "holdfast": ["py.typed"],
        "holdfast.models": ["zoo.json"],
        "holdfast.leaderboard": ["*.html"],
        "holdfast.one_image": ["calibrations.json"],
        "holdfast.playground": ["style.css", "board.js"],
        "holdfast.report": ["*.html", "*.js", "*.css"],
        "holdfast.viewer": ["*.html", "*.js"],
        "holdfast.recipes": ["*.yaml"],
        **{f"holdfast.zoo.{name}": ["card.json", "model.safetensors"] for name in MODELS},
    },
)
