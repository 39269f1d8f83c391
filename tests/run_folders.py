"""Run folders as a training and an evaluation leave them, made up but consistent, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2))


def interval(count: int, n: int) -> list[float]:
    """A rough 95 % interval, clipped to [0, 1]."""
    p = count / n
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return [max(0.0, p - half), min(1.0, p + half)]


def colour_images(m: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(m, 3, size, size) smooth colour pictures in [0, 1]."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 1, size)
    phase, pace = rng.uniform(0, 6.3, (m, 3, 1, 1)), rng.uniform(1, 9, (2, m, 3, 1, 1))
    waves = np.sin(phase + pace[0] * grid[:, None] + pace[1] * grid[None, :])
    return (0.5 + 0.5 * waves).astype(np.float32)


def evaluation_run(
    folder: Path,
    *,
    n: int = 1000,
    standard: float = 0.8,
    robust: float = 0.41,
    eps: float = 8 / 255,
    norm: str = "linf",
    suite: str = "apgd",
    name: str = "cifar10-cpu",
    classes: list[str] | None = None,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    fired: tuple[str, ...] = (),
    curve: dict[str, Any] | bool = True,
    data: str = "cifar10",
    pixels: str = "the JPEG copy of the test images",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A finished evaluation; `images` (M, C, H, W) become its examples, `labels` (n,) its labels,
    and `changes` replace top-level fields of result.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    classes = CIFAR10 if classes is None else classes
    k = len(classes)
    labels = rng.integers(0, k, n) if labels is None else labels
    right, standing = round(standard * n), round(robust * n)
    order = np.argsort(rng.uniform(size=n) + 0.4 * np.isin(labels, [2, 3, 4]))
    fate = np.empty(n, object)
    fate[order[:standing]] = ""
    by_ce = standing + round(0.84 * (right - standing))
    fate[order[standing:by_ce]] = "apgd-ce"
    fate[order[by_ce:right]] = "apgd-t"
    fate[order[right:]] = "clean"

    wrong = (labels + rng.choice([1, 2, 3, k - 1], n)) % k
    broken_by_attack = np.isin(fate, ["apgd-ce", "apgd-t"])
    mistake = fate == "clean"
    clean_prediction = np.where(mistake, wrong, labels)
    adversarial_prediction = np.where(broken_by_attack | mistake, wrong, labels)
    spent = np.where(fate == "", 1010, np.where(fate == "clean", 1, rng.integers(5, 400, n)))
    columns = {
        "index": np.arange(n),
        "label": labels,
        "clean_prediction": clean_prediction,
        "clean_confidence": rng.uniform(0.4, 1, n).round(4),
        "broken": (fate != "").astype(int),
        "attack": fate,
        "target": np.where(fate == "apgd-t", wrong, -1),
        "adversarial_prediction": adversarial_prediction,
        "adversarial_confidence": rng.uniform(0.3, 0.9, n).round(4),
        "distance": np.where(mistake, 0.0, eps),
        "forwards": spent,
        "backwards": np.maximum(spent - 3, 0),
    }
    with (folder / "verdicts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))

    images = colour_images(16) if images is None else images
    m = len(images)
    steps = rng.choice([-eps, eps], images.shape) * ~mistake[:m, None, None, None]
    save_file(
        {
            "images": images,
            "adversarial": np.clip(images + steps, 0, 1).astype(np.float32),
            "index": np.arange(m, dtype=np.int64),
        },
        folder / "examples.safetensors",
    )

    checks = {
        "gradients-vanish": "At most 5 % of the input gradients are zero everywhere.",
        "larger-eps-does-not-help": "Twice the radius breaks more images.",
        "huge-eps-leaves-accuracy": "No image stands when every pixel may take any value.",
        "outputs-change-between-calls": "Two calls on the same images give the same outputs.",
    }
    radii = [0.0, eps / 4, eps / 2, eps, 1.5 * eps, 2 * eps, 3 * eps, 4 * eps]
    shares = [max(0.0, standard - (standard - robust) * radius / eps) for radius in radii]
    points = [
        {
            "eps": radius,
            "robust_accuracy": round(share * 256) / 256,
            "interval": interval(round(share * 256), 256),
        }
        for radius, share in zip(radii, shares, strict=True)
    ]
    result = {
        "schema": "holdfast/evaluation/1",
        "status": "complete",
        "identity": "9f2c" * 16,
        "model": {
            "name": name,
            "source": f"runs/{name}/model",
            "sha256": "4be1" * 16,
            "architecture": "preact-resnet18",
        },
        "data": {"name": data, "split": "test", "first": n, "pixels": pixels},
        "n": n,
        "standard_accuracy": right / n,
        "standard_accuracy_interval": interval(right, n),
        "robust_accuracy": standing / n,
        "robust_accuracy_interval": interval(standing, n),
        "threat": {"norm": norm, "eps": eps},
        "suite": suite,
        "attacks": [
            {
                "name": attack,
                "broken": int((fate == attack).sum()),
                "forwards": forwards,
                "backwards": forwards - 3000,
                "seconds": seconds,
            }
            for attack, forwards, seconds in (
                ("apgd-ce", 61234, 21.4),
                ("apgd-t", 412345, 133.9),
            )
        ],
        "flags": [
            {
                "name": flag,
                "fired": flag in fired,
                "detail": detail,
                "figures": {"share": 0.61 if flag in fired else 0.0123, "n": 256},
            }
            for flag, detail in checks.items()
        ],
        "classes": classes,
        "curve": {"attack": "apgd-ce, 20 steps", "n": 256, "points": points}
        if curve is True
        else curve or None,
        "forwards": 473579,
        "backwards": 467579,
        "seconds": 155.3,
        "seed": 0,
        "precision": "bfloat16 search, float32 verdict",
    }
    write_json(folder / "result.json", result | changes)
    write_json(folder / "request.json", request("evaluate", folder, ["--suite", suite]))
    return folder


def training_run(folder: Path, *, epochs: int = 24, collapse: bool = True, **changes: Any) -> Path:
    """A finished training; with `collapse`, epoch 9 overfits catastrophically."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    t = np.arange(epochs) / max(1, epochs - 1)
    clean = 0.3 + 0.5 * t**0.5 + rng.normal(0, 0.008, epochs)
    pgd = 0.2 + 0.25 * t**0.5 + rng.normal(0, 0.006, epochs)
    fgsm = pgd + 0.06
    if collapse and epochs > 9:
        pgd[9], fgsm[9] = 0.04, 0.71
    columns = {
        "epoch": np.arange(1.0, epochs + 1),
        "step": np.arange(1, epochs + 1) * 390,
        "seconds": (np.arange(1, epochs + 1) * 149.2).round(1),
        "learning_rate": (0.2 * np.minimum(t / 0.3 + 0.05, (1 - t) / 0.7)).round(5),
        "train_loss": (2.1 - 0.8 * t**0.6).round(4),
        "train_accuracy": (0.2 + 0.3 * t**0.6).round(4),
        "images_per_second": rng.normal(334, 3, epochs).round(1),
        "validation_accuracy": clean.round(4),
        "validation_fgsm_accuracy": fgsm.round(4),
        "validation_pgd_accuracy": [
            "" if i % 3 == 1 and i > 12 else v for i, v in enumerate(pgd.round(4))
        ],
        "live_pgd_accuracy": (pgd - 0.02).round(4),
    }
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    detail = "FGSM accuracy rose to 71.0 % and PGD accuracy fell to 4.0 %; went back to epoch 9."
    events = [{"epoch": 10.0, "kind": "catastrophic-overfitting", "detail": detail}]
    result = {
        "schema": "holdfast/training/1",
        "status": "complete",
        "model": "model",
        "identity": "9f2c" * 16,
        "data": {"name": "cifar10", "split": "train", "pixels": "mostly JPEG copies"},
        "epochs": float(epochs),
        "steps": epochs * 390,
        "seconds": epochs * 149.2,
        "best_epoch": epochs - 1.0,
        "validation": {"standard_accuracy": 0.797, "pgd_accuracy": 0.449, "n": 1000},
        "events": events if collapse and epochs > 9 else [],
    }
    write_json(folder / "result.json", result | changes)
    asked = request("train", folder, ["--budget", "60m"])
    recipe = {"objective": "n-fgsm", "eps": "8/255", "batch_size": 128, "model": "preact-resnet18"}
    write_json(folder / "request.json", asked | {"asked": {"recipe": recipe, "seed": 3}})
    return folder


PUBLISHED = "benchmarks/results/uncertainty-cifar10-standard-cpu.json"  # without bins


def uncertainty_run(
    folder: Path, *, clean: float | None = None, moved: float | None = None, bins: bool = False
) -> Path:
    """A published result as a run; calibration errors may be others, and bins be made up."""
    folder.mkdir(parents=True)
    result = json.loads((Path(__file__).parents[1] / PUBLISHED).read_text())
    for condition, error in (("clean", clean), ("miscalibrate", moved)):
        if error is not None:
            result["conditions"][condition]["ece"] = {"value": error}
    if bins:
        for name in result["conditions"]:
            held = {"images": [1, 9, 0, 90], "confidence": [0.3, 0.6, None, 0.95],
                    "frequency": [1.0, 0.5, None, 0.9]}  # fmt: skip
            curve = {"coverage": [0.25, 0.5, 1.0], "risk": [0.0, 0.05, 0.2]}
            drawing = {"reliability": held, "risk_coverage": curve}
            result.setdefault("drawings", {})[name] = drawing
    write_json(folder / "result.json", result)
    return folder


def request(kind: str, folder: Path, options: list[str]) -> dict[str, Any]:
    return {
        "schema": "holdfast/request/1",
        "command": [
            "holdfast",
            kind,
            "a model",
            "--data",
            "datasets",
            *options,
            "--out",
            folder.name,
        ],
        "kind": kind,
        "identity": "9f2c" * 16,
        "versions": {"python": "3.12.4", "torch": "2.13.0", "holdfast": "0.1.0"},
        "device": "cpu",
        "machine": "AMD EPYC 9124, 2 cores",
        "git": "0a1b2c3d4e5f",
        "started": "2026-05-04T10:20:30+00:00",
        "batch_size": 128,
    }
