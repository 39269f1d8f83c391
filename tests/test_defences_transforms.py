"""Every transform against an independent computation, every gradient against differences."""

import io
import itertools
import json

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.optimize
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_image
from torch import nn

from holdfast import defences
from holdfast.defences import (
    Autoencoder,
    BitDepth,
    CropEnsemble,
    GaussianBlur,
    Jpeg,
    Median,
    Noise,
    Palette,
    ResizePad,
    Thermometer,
    TotalVariation,
    load_autoencoder,
    save_autoencoder,
    train_autoencoder,
)
from holdfast.draws import fixed_draws
from holdfast.errors import InputError

NOTHING = nn.Identity()


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """24 tiles of a photograph, 32×32, colour."""
    china = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    corners = itertools.product(range(40, 240, 50), range(0, 600, 100))
    return torch.stack([china[:, y : y + 32, x : x + 32] for y, x in corners]).float() / 255


# --- values -----------------------------------------------------------------------------------


def pillow_jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    decoded = []
    for image in images:
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality)
        again = np.array(Image.open(file)).reshape(pixels.shape)
        decoded.append(torch.from_numpy(again).permute(2, 0, 1))
    return torch.stack(decoded).float() / 255


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("kind", ["colour", "odd", "grey"])
def test_jpeg_is_pillows(photographs, quality, kind):
    """libjpeg computes with integers, so coefficients near a rounding edge may differ."""
    images = {
        "colour": photographs,
        "odd": photographs[:, :, :27, :21],
        "grey": photographs[:, :1],
    }[kind]
    ours, theirs = Jpeg(NOTHING, quality=quality)(images), pillow_jpeg(images, quality)
    levels = (ours - theirs).abs() * 255
    assert levels.mean() < (0.3 if kind == "grey" else 0.8)
    assert (levels < 1.5).float().mean() > 0.8
    # Far nearer to it than the compression itself moves the image.
    assert levels.mean() < (theirs - images).abs().mean() * 255 / 3
    assert torch.allclose(ours * 255, (ours * 255).round(), atol=1e-3)


def test_jpeg_blocks_are_the_textbooks(photographs):
    """A quality whose tables are all 1, and one of a block's coefficients, in double precision."""
    grey = photographs[:, :1]
    exact = np.empty_like(grey.numpy())
    table = defences.jpeg._table(defences.jpeg._LUMINANCE, 75).numpy()
    assert table[0].tolist() == [8, 6, 5, 8, 12, 20, 26, 31]  # as cjpeg -quality 75 writes it
    for n, y, x in itertools.product(range(len(grey)), range(0, 32, 8), range(0, 32, 8)):
        block = (grey[n, 0, y : y + 8, x : x + 8].double() * 255).round().numpy() - 128
        quantised = scipy.fft.dctn(block, norm="ortho") / table
        quantised = np.sign(quantised) * np.floor(np.abs(quantised) + 0.5 + 1e-4)
        block = scipy.fft.idctn(quantised * table, norm="ortho") + 128
        exact[n, 0, y : y + 8, x : x + 8] = np.clip(np.round(block), 0, 255) / 255
    different = (Jpeg(NOTHING)(grey).numpy() - exact) != 0
    assert np.abs(Jpeg(NOTHING)(grey).numpy() - exact)[different].size < 0.002 * exact.size


def test_jpeg_refuses_two_channels():
    with pytest.raises(InputError, match="1 or 3 channels, not 2"):
        Jpeg(NOTHING)(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_takes_the_nearest_level(bits):
    images = torch.rand(2, 3, 8, 8)
    levels = torch.linspace(0, 1, 2**bits)
    nearest = levels[(images.unsqueeze(-1) - levels).abs().argmin(-1)]
    assert torch.allclose(BitDepth(NOTHING, bits=bits)(images), nearest, atol=1e-6)


@pytest.mark.parametrize("kernel", [3, 5])
def test_median_is_scipys(kernel):
    images = torch.rand(2, 3, 9, 7)
    expected = scipy.ndimage.median_filter(
        images.numpy(), size=(1, 1, kernel, kernel), mode="nearest"
    )
    assert np.array_equal(Median(NOTHING, kernel=kernel)(images).numpy(), expected)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3])
def test_blur_is_scipys(sigma):
    images = torch.rand(2, 3, 15, 12)
    expected = scipy.ndimage.gaussian_filter(
        images.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4
    )
    assert np.allclose(GaussianBlur(NOTHING, sigma=sigma)(images).numpy(), expected, atol=1e-6)


def test_total_variation_minimises_what_it_says(photographs):
    """The primal objective, written anew and minimised by a general solver on a small image."""
    image = photographs[:1, :1, :7, :6].double()
    weight = 0.05

    def objective(flat):
        u = flat.reshape(7, 6)
        down, right = np.zeros_like(u), np.zeros_like(u)
        down[:-1], right[:, :-1] = u[1:] - u[:-1], u[:, 1:] - u[:, :-1]
        fidelity = 0.5 * ((u - image[0, 0].numpy()) ** 2).sum()
        return fidelity + weight * np.sqrt(down**2 + right**2 + 1e-10).sum()

    best = scipy.optimize.minimize(objective, image.numpy().ravel(), method="L-BFGS-B").fun
    value = {
        n: objective(TotalVariation(NOTHING, weight=weight, iterations=n)(image).numpy().ravel())
        for n in (30, 1000)
    }
    before = objective(image.numpy().ravel())
    assert abs(value[1000] - best) < 0.005 * (before - best)
    assert value[30] - best < 0.05 * (before - best)


def test_noise_is_gaussian_of_the_stated_width():
    grey = torch.full((16, 3, 32, 32), 0.5)
    noise = Noise(NOTHING, sigma=0.1)(grey) - 0.5
    assert float(noise.std()) == pytest.approx(0.1, rel=0.01)
    assert abs(float(noise.mean())) < 0.002
    white = Noise(NOTHING, sigma=0.1)(torch.ones(1, 1, 32, 32))
    assert float((white == 1).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_resize_pad_is_one_of_the_possible_resized_and_padded_images(photographs):
    images = photographs[:, :, :12, :12]
    shown = ResizePad(NOTHING, smallest=0.75)(images)
    sizes = set()
    for image, seen in zip(images, shown, strict=True):
        matches = []
        for size in range(9, 13):
            small = F.interpolate(image[None], size=(size, size), mode="bilinear")[0]
            room = 12 - size
            for top, left in itertools.product(range(room + 1), repeat=2):
                padded = F.pad(small, (left, room - left, top, room - top))
                if torch.allclose(padded, seen, atol=1e-5):
                    matches.append(size)
        assert len(matches) == 1
        sizes.add(matches[0])
    assert len(sizes) >= 3


def test_crop_ensemble_averages_probabilities_over_resized_crops(photographs):
    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))

        def forward(self, x):
            self.seen = x
            return self.inner(x) * 20

    torch.manual_seed(0)
    images = photographs[:4, :, :12, :12]
    watch = Watch()
    answer = CropEnsemble(watch, crops=5, size=0.75)(images)
    probabilities = watch(watch.seen).softmax(1).view(4, 5, 4).mean(1)
    assert torch.allclose(answer.softmax(1), probabilities, atol=1e-5)
    assert torch.allclose(answer.exp().sum(1), torch.ones(4), atol=1e-5)
    places = set()
    rows = (np.arange(12) + 0.5) * 9 / 12 - 0.5
    for i, seen in enumerate(watch.seen):
        matches = []
        for top, left in itertools.product(range(4), repeat=2):
            grid = np.meshgrid(rows + top, rows + left, indexing="ij")
            crop = [
                scipy.ndimage.map_coordinates(channel.numpy(), grid, order=1, mode="nearest")
                for channel in images[i // 5]
            ]
            if np.allclose(crop, seen.numpy(), atol=1e-5):
                matches.append((top, left))
        assert len(matches) == 1
        places.add(matches[0])
    assert len(places) > 8


def test_thermometer_bits_and_what_a_plain_model_sees():
    values = torch.tensor([0.0, 0.124, 0.126, 0.5, 0.876, 1.0]).view(1, 1, 1, 6)
    bits = Thermometer(NOTHING, levels=4, decode=False)(values)
    assert bits[0, :, 0].T.tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    images = torch.rand(2, 3, 5, 5)
    levels = torch.linspace(0, 1, 17)
    nearest = levels[(images.unsqueeze(-1) - levels).abs().argmin(-1)]
    assert torch.allclose(Thermometer(NOTHING)(images), nearest, atol=1e-6)
    channels = Thermometer(NOTHING, levels=5, decode=False)(images)
    assert channels.shape == (2, 15, 5, 5)
    assert torch.equal(channels[:, 5:10], Thermometer(NOTHING, levels=5).encode(images[:, 1:2]))


@pytest.mark.parametrize("colours", [2, 16, 50])
def test_palette_is_a_good_quantisation_with_few_colours(photographs, colours):
    images = photographs[3::6]  # other than plain sky
    palette = Palette(NOTHING, colours=colours)
    shown = palette(images)
    chosen = palette.palette(images)
    errors, best = [], []
    for image, seen, own in zip(images, shown, chosen, strict=True):
        pixels, drawn = image.flatten(1).T, seen.flatten(1).T
        assert len(drawn.unique(dim=0)) <= colours
        distances = torch.cdist(pixels.double(), own.double())
        off = (pixels - drawn).double().norm(dim=1) - distances.amin(1)
        assert off.max() < 1e-4  # each pixel takes the nearest colour
        errors.append(float(((pixels - drawn) ** 2).sum()))
        kmeans = KMeans(colours, n_init=1, random_state=0).fit(pixels.double().numpy())
        best.append(kmeans.inertia_)
    assert sum(errors) < 1.15 * sum(best)
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(palette(flat), flat)


# --- gradients --------------------------------------------------------------------------------


def assert_gradient(function, x, value_and_gradient=None, step=1e-7):
    """The gradient along three random directions against central differences, in float64.

    The step is short enough that a kink (ReLU, median) hardly ever lies within it.
    """
    x = x.double().clone().requires_grad_()
    weights = torch.randn_like(function(x))
    out = (value_and_gradient or function)(x)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert gradient.abs().max() > 0
    for _ in range(3):
        direction = torch.randn_like(x)
        with torch.no_grad():
            ahead, behind = function(x + step * direction), function(x - step * direction)
        difference = ((ahead - behind) * weights).sum() / (2 * step)
        along = (gradient * direction).sum()
        assert torch.allclose(along, difference, rtol=1e-3, atol=1e-4)


def autoencoder_at_random():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return defences.autoencoder.DenoisingAutoencoder(width=16).double()


INNER = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25


@pytest.mark.parametrize(
    "defence",
    [
        Median(NOTHING),
        GaussianBlur(NOTHING),
        TotalVariation(NOTHING),
        ResizePad(NOTHING),
        CropEnsemble(nn.Sequential(nn.Flatten(), nn.Linear(768, 4).double()), crops=3),
        Noise(NOTHING),
        Autoencoder(NOTHING, weights=autoencoder_at_random()),
    ],
    ids=lambda defence: defence.name,
)
def test_exact_gradients_are_exact(defence):
    torch.manual_seed(0)

    def fixed(x):
        with fixed_draws(3):
            return defence(x)

    assert_gradient(fixed, INNER)


@pytest.mark.parametrize(
    "defence", [Jpeg(NOTHING), BitDepth(NOTHING), Thermometer(NOTHING)], ids=lambda d: d.name
)
def test_surrogates_are_smooth_and_near_and_theirs_is_the_gradient(defence):
    torch.manual_seed(0)
    twin = defence.with_backward("surrogate")
    assert_gradient(defence.surrogate, INNER, value_and_gradient=twin)
    assert torch.equal(twin(INNER), defence.transform(INNER))
    # Grey, because in colour JPEG loses more to halved chroma, which needs no surrogate.
    grey = INNER[:, :1]
    off = (defence.surrogate(grey) - defence.transform(grey)).abs().mean()
    assert off < 0.8 * (grey - defence.transform(grey)).abs().mean()


def test_palette_surrogate_with_its_colours_and_their_width_held_fixed():
    torch.manual_seed(0)
    defence = Palette(NOTHING, colours=8).with_backward("surrogate")
    colours = defence.palette(INNER.double())

    def distances(x):
        return torch.cdist(x.flatten(2).transpose(1, 2), colours) ** 2

    width = distances(INNER.double()).amin(2).mean(1).view(2, 1, 1) / 3

    def soft(x):
        mixed = (-distances(x) / (2 * width)).softmax(2) @ colours
        return mixed.transpose(1, 2).reshape(x.shape)

    assert_gradient(soft, INNER, value_and_gradient=defence)
    hard = defence.transform(INNER)
    assert (soft(INNER.double()) - hard).abs().mean() < (INNER - hard).abs().mean()


def test_total_variation_of_a_flat_image_has_a_finite_gradient():
    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(TotalVariation(NOTHING)(x).square().sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_thermometer_channels_have_a_gradient_on_either_path():
    images = INNER.clone().requires_grad_()
    weights = torch.randn(1, 48, 1, 1)
    summed = weights.view(3, 16).sum(1).view(1, 3, 1, 1).expand_as(images)
    straight = Thermometer(NOTHING, decode=False)
    (gradient,) = torch.autograd.grad((straight(images) * weights).sum(), images)
    assert torch.allclose(gradient, summed, atol=1e-4)
    soft = straight.with_backward("surrogate")
    torch.manual_seed(0)
    assert_gradient(soft.soft_code, INNER, value_and_gradient=soft)
    assert torch.equal(soft(images), straight(images))


# --- the autoencoder --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.from_numpy(load_digits().images / 16).float().unsqueeze(1)


def test_autoencoder_learns_to_denoise_and_survives_the_disk(digits, tmp_path):
    network = train_autoencoder(
        digits[:1200], sigma=0.3, steps=150, batch_size=64, learning_rate=0.01, width=16
    )
    clean = digits[1200:1500]
    noisy = (clean + 0.3 * torch.randn_like(clean)).clamp(0, 1)
    defence = Autoencoder(NOTHING, weights=network)
    with torch.no_grad():
        after, before = F.mse_loss(defence(noisy), clean), F.mse_loss(noisy, clean)
    assert after < 0.9 * before

    folder = save_autoencoder(tmp_path / "ae", network, {"data": "digits"})
    again = defences.parse(f"autoencoder:weights={folder}")(NOTHING)
    assert torch.equal(again(noisy), defence(noisy))
    assert json.loads((folder / "card.json").read_text())["data"] == "digits"
    with pytest.raises(InputError, match="trained on images of 1 channels, given 3"):
        again(torch.rand(1, 3, 8, 8))


def test_autoencoder_is_trained_on_noise_of_the_stated_width(monkeypatch):
    seen = []
    forward = defences.autoencoder.DenoisingAutoencoder.forward
    monkeypatch.setattr(
        defences.autoencoder.DenoisingAutoencoder,
        "forward",
        lambda self, x: seen.append(x) or forward(self, x),
    )
    train_autoencoder(torch.full((4, 1, 16, 16), 0.5), sigma=0.1, steps=2, width=2)
    assert float(torch.stack(seen).std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(*seen)


def test_autoencoder_training_is_repeatable(digits):
    def train(seed):
        torch.rand(1)  # what the default generator does must not matter
        return train_autoencoder(digits[:64], steps=3, width=8, seed=seed)(digits[:2])

    first = train(4)
    assert torch.equal(train(4), first)
    assert not torch.equal(train(5), first)


def test_autoencoder_folders_that_are_no_autoencoder(tmp_path):
    network = defences.autoencoder.DenoisingAutoencoder(channels=1, width=2)
    folder = save_autoencoder(tmp_path / "ae", network)
    card = json.loads((folder / "card.json").read_text())
    for change, message in (
        ({"architecture": "small-cnn"}, "describes no denoising-autoencoder"),
        ({"arguments": {"width": 2}}, "must be channels and width"),
        ({"arguments": {"channels": 1, "width": 0}}, "width must be"),
        ({"arguments": {"channels": 1, "width": 3}}, "another architecture"),
    ):
        (folder / "card.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(InputError, match=message):
            load_autoencoder(folder)
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match=r"card\.json does not exist"):
        load_autoencoder(folder)
