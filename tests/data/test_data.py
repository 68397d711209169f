"""Toys, digits and the reader of idx files."""

import gzip
import math
import struct
from pathlib import Path

import pytest
import torch

from flowlib import data
from flowlib.data import digits, images, toys

SAMPLERS = {
    "eight_gaussians": toys.eight_gaussians(),
    "two_gaussians": toys.two_gaussians(),
    "moons": toys.moons(),
    "checkerboard": toys.checkerboard(),
    "spirals": toys.spirals(),
    "pinwheel": toys.pinwheel(),
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.parametrize("name", SAMPLERS)
def test_toys_are_seeded_finite_and_of_moderate_size(name: str) -> None:
    toy = SAMPLERS[name]
    a, b = (toy.sample(4000, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (4000, 2)
    assert torch.isfinite(a).all()
    assert float(a.mean(0).abs().max()) < 0.3
    assert 0.4 < float(a.std()) < 2.5
    other = toy.sample(4000, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(a, other)


def test_eight_gaussians_lie_on_a_circle() -> None:
    mixture = toys.eight_gaussians(radius=3.0, std=0.1)
    torch.testing.assert_close(mixture.means.norm(dim=1), torch.full((8,), 3.0))
    assert mixture.means.unique(dim=0).shape[0] == 8


@pytest.mark.parametrize("cells", [2, 4, 6])
def test_checkerboard_samples_fill_the_squares_its_density_names(cells: int) -> None:
    board = toys.checkerboard(cells)
    x = board.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(board.log_prob(x), torch.tensor(math.log(1 / 8)))
    squares = ((x + 2) * cells / 4).floor()
    counts = torch.bincount((squares[:, 0] * cells + squares[:, 1]).long(), minlength=cells**2)
    filled = counts[counts > 0]
    assert len(filled) == cells**2 // 2
    assert float(filled.min()) > 0.8 * 20_000 / len(filled)


def test_checkerboard_density_follows_the_dtype() -> None:
    assert toys.checkerboard().log_prob(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_checkerboard_density_integrates_to_one() -> None:
    side = torch.arange(-3, 3, 0.02, dtype=torch.float64) + 0.01
    grid = torch.cartesian_prod(side, side)
    assert float(toys.checkerboard().log_prob(grid).exp().sum() * 0.02**2) == pytest.approx(1.0, abs=1e-6)


def test_digits_are_split_by_class_without_overlap() -> None:
    train, test, everything = (digits.load(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1447, 350, 1797)
    assert torch.equal(test.y.bincount(), torch.full((10,), 35))
    both = torch.cat([train.x, test.x]).flatten(1)
    assert torch.equal(both.sort(0).values, everything.x.flatten(1).sort(0).values)
    levels = ((everything.x + 1) * 8).unique()
    assert torch.equal(levels, torch.arange(17.0))


def test_digits_cannot_be_damaged_through_a_loaded_copy() -> None:
    digits.load("all").x.zero_()
    assert float(digits.load("all").x.abs().sum()) > 0
    digits.load("train").x.zero_()
    assert float(digits.load("train").x.abs().sum()) > 0


def test_labelled_data_keep_their_labels() -> None:
    everything = digits.load("all")
    x, conditions = everything.sample(50, generator=torch.Generator().manual_seed(0))
    for image, label in zip(x, conditions["y"], strict=True):
        same = (everything.x == image).flatten(1).all(1)
        assert bool((everything.y[same] == label).any())
    assert set(everything.of_class(7).y.tolist()) == {7}


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + bytes(values.flatten().tolist())))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for prefix, n in (("train", 5), ("t10k", 3)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", torch.randint(256, (n, 28, 28), generator=generator))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", torch.arange(n))
    return tmp_path


def test_idx_files_are_read_back(tmp_path: Path) -> None:
    values = torch.randint(256, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    write_idx(tmp_path / "a.gz", values)
    assert torch.equal(images.read_idx(tmp_path / "a.gz").long(), values)


def test_fashion_mnist_is_scaled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = images.fashion_mnist(folder)
    raw = images.read_idx(folder / "train-images-idx3-ubyte.gz")
    torch.testing.assert_close((train.x[:, 0] + 1) * 127.5, raw.float())
    assert torch.equal(train.y, torch.arange(5))
    monkeypatch.setenv("FLOWLIB_DATA", str(folder))
    assert len(images.fashion_mnist(split="test")) == 3


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
def test_the_real_fashion_mnist() -> None:
    test = images.fashion_mnist(split="test")
    assert test.x.shape == (10_000, 1, 28, 28)
    assert torch.equal(test.y.bincount(), torch.full((10,), 1000))
    assert float(test.x.min()) == -1.0
    assert float(test.x.max()) == 1.0


@pytest.mark.bad_input
class TestBadInput:
    def test_missing_data_set_says_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
            images.fashion_mnist(tmp_path)

    def test_truncated_gzip(self, folder: Path) -> None:
        path = folder / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match="not a whole gzip file"):
            images.fashion_mnist(folder)

    def test_damaged_gzip(self, folder: Path) -> None:
        path = folder / "train-images-idx3-ubyte.gz"
        content = bytearray(path.read_bytes())
        content[10:] = b"\xff" * (len(content) - 10)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            images.fashion_mnist(folder)

    def test_truncated_idx(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + b"abc")
        with pytest.raises(ValueError, match="declares 5 entries but holds 3"):
            images.read_idx(tmp_path / "a")
        (tmp_path / "b").write_bytes(b"PNG?")
        with pytest.raises(ValueError, match="not an idx file"):
            images.read_idx(tmp_path / "b")

    def test_labels_of_another_length(self, folder: Path) -> None:
        write_idx(folder / "train-labels-idx1-ubyte.gz", torch.arange(4))
        with pytest.raises(ValueError, match="labels"):
            images.fashion_mnist(folder)

    def test_arguments(self) -> None:
        with pytest.raises(ValueError, match="split must be one of"):
            digits.load("validation")
        with pytest.raises(ValueError, match="n must be positive"):
            toys.moons().sample(0)
        for make in (lambda: toys.moons(noise=-1.0), lambda: toys.pinwheel(0), lambda: toys.spirals(turns=0.0)):
            with pytest.raises(ValueError, match="must"):
                make()
        with pytest.raises(ValueError, match="cells must be an even number"):
            toys.checkerboard(3)
        with pytest.raises(ValueError, match="weight must lie strictly"):
            toys.two_gaussians(weight=1.0)
        with pytest.raises(ValueError, match="no item has the label 11"):
            digits.load("all").of_class(11)
        with pytest.raises(ValueError, match=r"y must have shape \[2\]"):
            data.Labelled(torch.zeros(2, 1), torch.zeros(3, dtype=torch.long))
        with pytest.raises(TypeError, match="int64"):
            data.Labelled(torch.zeros(2, 1), torch.zeros(2))


class TestDequantize:
    def test_levels_are_recovered_by_rounding(self, generator) -> None:
        x = data.digits.load("test").x
        noisy = data.digits.dequantize(x, generator=generator)
        assert torch.equal((noisy / data.digits.BIN_WIDTH).round() * data.digits.BIN_WIDTH, x)

    def test_noise_is_uniform_in_the_bin(self, generator) -> None:
        x = data.digits.load("all").x
        u = (data.digits.dequantize(x, generator=generator) - x) / data.digits.BIN_WIDTH
        n = u.numel()
        assert abs(float(u.mean())) < 4 * (1 / 12 / n) ** 0.5
        assert abs(float(u.var()) - 1 / 12) < 4 * (1 / 180 / n) ** 0.5

    @pytest.mark.bad_input
    def test_dequantised_images_are_refused(self, generator) -> None:
        x = data.digits.dequantize(data.digits.load("test").x, generator=generator)
        with pytest.raises(ValueError, match="grey levels"):
            data.digits.dequantize(x)
