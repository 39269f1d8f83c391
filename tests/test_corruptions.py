"""The 15 common corruptions, and the reader of the published files."""

import colorsys
import io

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from holdfast.data import corruptions
from holdfast.data.corruptions import CORRUPTIONS, corrupt, read_published
from holdfast.errors import InputError


def pictures(n=12, seed=0, channels=3):
    """Smooth random images with structure, at 256 levels."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, channels, 32, 32))
    smooth = gaussian_filter(noise, (0, 0, 2, 2))
    smooth = 0.5 + 0.35 * smooth / smooth.std()
    return torch.from_numpy(np.round(smooth.clip(0, 1) * 255) / 255).float()


def distance(name, severity, images, **options):
    return (corrupt(images, name, severity, **options) - images).abs().mean().item()


def test_there_are_the_fifteen():
    assert list(CORRUPTIONS) == [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur",
        "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
        "elastic_transform", "pixelate", "jpeg_compression",
    ]  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_corrupted_twice_is_the_same(name):
    """Whatever the batch; and an image's draws are its own."""
    images = pictures()
    for severity in (1, 3, 5):
        whole = corrupt(images, name, severity, seed=3)
        assert whole.dtype == torch.float32 and whole.shape == images.shape
        assert whole.amin() >= 0 and whole.amax() <= 1
        assert torch.equal(whole, (whole * 255).round() / 255)
        assert (whole != images).flatten(1).any(1).all()
        assert torch.equal(corrupt(images, name, severity, seed=3, batch_size=5), whole)
        alone = corrupt(images[7:8], name, severity, seed=3, items=torch.tensor([7]))
        assert torch.equal(alone[0], whole[7])


RANDOM = [
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "elastic_transform",
]  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_and_images_differ(name):
    same = pictures(1).expand(4, -1, -1, -1)
    first = corrupt(same, name, 5)
    assert len({image.numpy().tobytes() for image in first}) == 4
    assert (first != corrupt(same, name, 5, seed=1)).flatten(1).any(1).all()


# Published severities of frost, glass blur and elastic do not rise in this measure.
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"frost", "glass_blur"}))
def test_severity_rises(name):
    images = pictures(40)
    steps = [distance(name, severity, images) for severity in corruptions.SEVERITIES]
    if name == "elastic_transform":  # from stretched to rippled
        assert min(steps) > 0.02
    else:
        assert steps == sorted(steps) and steps[4] > 1.2 * steps[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_images(name):
    grey = corrupt(pictures(3, channels=1), name, 3)
    assert grey.shape == (3, 1, 32, 32)
    assert grey.isfinite().all()


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform",
     "pixelate", "jpeg_compression"],
)  # fmt: skip
def test_nothing_to_see_stays_as_it_is(name):
    """A blur, a warp or a loss of contrast leaves an image of one colour alone."""
    flat = torch.full((2, 3, 32, 32), 102 / 255)
    for severity in corruptions.SEVERITIES:
        assert (corrupt(flat, name, severity) - flat).abs().max() < 1.5 / 255


def test_noise_has_its_distribution():
    grey = torch.full((100, 3, 32, 32), 102 / 255)
    gaussian = corrupt(grey, "gaussian_noise", 5)
    assert gaussian.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert gaussian.std().item() == pytest.approx(0.1, abs=1e-3)
    impulse = corrupt(grey, "impulse_noise", 5)
    assert (impulse == 0).float().mean().item() == pytest.approx(0.035, abs=1e-3)
    assert (impulse == 1).float().mean().item() == pytest.approx(0.035, abs=1e-3)


@pytest.mark.parametrize("level", [0, 1, 20, 128, 255])
def test_shot_noise_counts_photons(level):
    x = torch.full((5, 3, 32, 32), level / 255, dtype=torch.float64)
    counts = (corruptions.shot_noise(x, torch.arange(5), 5) * 50).numpy()
    assert counts == pytest.approx(np.round(counts), abs=1e-9)
    mean = level / 255 * 50
    for k in range(0, 80, 7):
        assert (counts.round() <= k).mean() == pytest.approx(
            scipy.stats.poisson.cdf(k, mean), abs=0.015
        )


def test_blurs_are_the_known_filters():
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1
    seeds = torch.zeros(1, dtype=torch.int64)
    disk = corruptions.defocus_blur(point, seeds, 4)[0, 0]  # radius 1: a plus of five pixels
    assert disk[16, 16].item() == pytest.approx(0.2, abs=1e-4)
    assert disk[15, 16].item() == pytest.approx(0.2, abs=1e-4)
    assert disk.sum().item() == pytest.approx(1)
    noise = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    assert corruptions._gaussian_blur(noise, 1.3).numpy()[0, 0] == pytest.approx(
        gaussian_filter(noise.numpy()[0, 0], 1.3, mode="nearest")
    )
    # A trail to the left, falling as exp(−i²/2σ²), for an angle of 0.
    trail = corruptions._motion_blur(point, 6, 2.0, torch.zeros(1))[0, 0, 16]
    steps = np.exp(-(np.arange(13) ** 2) / 8)
    assert trail[4:17].flip(0).numpy() == pytest.approx(steps / steps.sum())


def test_brightness_raises_the_value_of_hsv():
    images = pictures(1)
    images[0, :, 0, 0] = 0
    found = corrupt(images, "brightness", 4)
    for row, column in [(0, 0), (3, 5), (20, 9), (31, 31)]:
        h, s, v = colorsys.rgb_to_hsv(*images[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1))
        assert found[0, :, row, column].numpy() == pytest.approx(expected, abs=0.6 / 255)


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_pixelate_and_jpeg_are_pillows(severity):
    image = pictures(1)
    pixels = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    side = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    box = Image.Resampling.BOX
    expected = np.array(pixels.resize((side, side), box).resize((32, 32), box))
    found = (corrupt(image, "pixelate", severity)[0] * 255).permute(1, 2, 0).numpy()
    assert found == pytest.approx(expected, abs=1.5)  # Pillow rounds between the two axes

    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=(80, 65, 58, 50, 40)[severity - 1])
    found = (corrupt(image, "jpeg_compression", severity)[0] * 255).round().permute(1, 2, 0)
    assert found.numpy() == pytest.approx(np.array(Image.open(file)), abs=0.1)


def test_weather_on_a_grey_day():
    grey = torch.full((20, 3, 32, 32), 102 / 255)
    # Between the flakes, snow leaves 0.8 x + 0.2 max(x, 1.5 x + 0.5).
    assert corrupt(grey, "snow", 5).amin().item() == pytest.approx(0.8 * 0.4 + 0.2 * 1.1, abs=3e-3)
    # Fog leaves the brightest value, and where it is thinnest takes off its share.
    fog = corrupt(grey, "fog", 4)
    assert fog.amax((1, 2, 3)).tolist() == pytest.approx([0.4] * 20, abs=3e-3)
    assert fog.amin((1, 2, 3)).tolist() == pytest.approx([0.4 * 0.4 / 1.4] * 20, abs=3e-3)
    # Ice is between a third and all of its own brightness, and blue.
    ice = (corrupt(grey, "frost", 5) - 0.75 * grey) / 0.45
    assert 0.29 < ice.amin() < ice.amax() < 1.01
    assert (ice[:, 2] > ice[:, 0]).all()


@pytest.mark.parametrize("decay", [3.0, 1.75])
def test_a_cloud_is_as_rough_as_its_decay(decay):
    """A midpoint is off the mean of its corners by noise that falls decay² at every halving."""
    cloud = corruptions.plasma(torch.arange(200), 32, 32, decay)
    assert cloud.amin() == 0 and cloud.amax() == 1

    def displacement(grid):
        corners = grid[:, ::2, ::2]
        across = corners + corners.roll(-1, 2)
        return (grid[:, 1::2, 1::2] - (across + across.roll(-1, 1)) / 4).square().mean((1, 2))

    ratio = (displacement(cloud[:, ::2, ::2]) / displacement(cloud)).mean().sqrt().item()
    assert ratio == pytest.approx(decay**2, rel=0.03)


def test_zoom_blur_smears_outward_and_more_so_at_the_edge():
    image = torch.zeros(1, 1, 32, 32)
    image[..., 6] = image[..., 14] = 1
    found = corrupt(image, "zoom_blur", 5)[0, 0, 16]
    assert found[6] < 0.5 < found[14]
    assert found[8:10].sum() == 0 and found[3:6].sum() > 0.4
    assert found[16:].sum() == 0 and found[:14].sum() > 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: corrupt(x, "fogg", 1), "corruption 'fogg' is unknown"),
        (lambda x: corrupt(x, "fog", 0), "severity of fog must be 1, 2, 3, 4 or 5, not 0"),
        (lambda x: corrupt(x, "fog", 6), "not 6"),
        (lambda x: corrupt(x * 255, "fog", 1), "outside [0, 1]"),
        (lambda x: corrupt((x * 255).byte(), "fog", 1), "float32"),
        (lambda x: corrupt(x * torch.nan, "fog", 1), "NaN"),
        (lambda x: corrupt(x[0], "fog", 1), "shape"),
        (lambda x: corrupt(x[:, :2], "fog", 1), "1 or 3 channels"),
        (lambda x: corrupt(x[..., :4], "fog", 1), "at least 8 pixels"),
        (lambda x: corrupt(x, "fog", 1, items=torch.arange(3)), "3 items for 2 images"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InputError) as error:
        call(pictures(2))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


# --- the published files ------------------------------------------------------------------------


def publish(folder, *, shape=(50_000, 32, 32, 3), dtype=np.uint8, labels=None):
    """Files of the published form; the pixels not written are holes in a sparse file."""
    images = np.lib.format.open_memmap(folder / "fog.npy", "w+", dtype, shape)
    images[20_005, 1, 2] = (10, 20, 30)
    images.flush()
    if labels is None:
        labels = np.tile(np.arange(10_000) % 10, 5).astype(np.uint8)
    np.save(folder / "labels.npy", labels)


def test_published_files_are_read_as_they_are(tmp_path):
    publish(tmp_path)
    images, labels = read_published(tmp_path, "fog", 3)
    assert images.shape == (10_000, 3, 32, 32) and images.dtype == torch.uint8
    assert images[5, :, 1, 2].tolist() == [10, 20, 30]
    assert images.sum() == 60
    assert labels.dtype == torch.int64 and labels.tolist() == [i % 10 for i in range(10_000)]
    assert read_published(tmp_path, "fog", 2)[0].sum() == 0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"shape": (40_000, 32, 32, 3)}, "not (50000, 32, 32, 3)"),
        ({"dtype": np.int8}, "not uint8"),
        ({"labels": np.tile(np.arange(10_000) % 11, 5)}, "other than labels 0 … 9"),
        ({"labels": np.arange(50_000) % 7}, "differs between severities"),
        ({"labels": np.zeros(10_000, np.uint8)}, "not (50000,)"),
        ({"labels": np.zeros(50_000, object)}, "pickled objects"),
    ],
)
def test_published_files_with_faults(tmp_path, spoil, says):
    publish(tmp_path, **spoil)
    with pytest.raises(InputError) as error:
        read_published(tmp_path, "fog", 1)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_published_files_missing_or_torn(tmp_path):
    with pytest.raises(InputError, match=r"fog\.npy is missing"):
        read_published(tmp_path, "fog", 1)
    publish(tmp_path)
    with open(tmp_path / "fog.npy", "r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(InputError, match=r"fog\.npy: it is not as long as its shape"):
        read_published(tmp_path, "fog", 1)
    with pytest.raises(InputError, match="is unknown"):
        read_published(tmp_path, "labels", 1)
