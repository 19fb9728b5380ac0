"""Images: the download of CIFAR-10 in its real format, the digits, draws, and augmentation against torchvision."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pickle
import re
import socket
import struct
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.functional as transforms
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from tolerances import RESNET, SYNTHETIC

from varpro.results import ResultError
from varpro.runs.bookkeeping import locked
from VarPro_resnet import cifar
from VarPro_resnet.cifar import Draws, augment, draw, load, normalise

ARCHIVE = "cifar-10-python.tar.gz"
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZES = {**{f"data_batch_{number}": 4 for number in range(1, 6)}, "test_batch": 6}
CIFAR10 = torchvision.datasets.CIFAR10
PINNED_ORDER = [4, 0, 7, 3, 2, 5, 1, 6]
PINNED_OFFSETS = [[1, 1], [0, 8], [2, 6], [3, 1], [2, 0], [0, 5], [3, 8], [2, 8]]
PINNED_FLIPS = [False, True, False, False, True, True, True, True]
PINNED_LABELS = [5, 7, 4, 5, 9, 5, 5, 8, 7, 7]


# --- a tiny archive in the real format -------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes texts as Python 2 did, which wrote the official files: the reader must decode them as Latin 1."""

    def save_text(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch = {**pickle._Pickler.dispatch, str: save_text, bytes: save_text}  # noqa: RUF012 - as in the base class


def pickled(contents):
    """As the official files: numpy's old module name, and 0 and 1 where a dtype now has False and True."""
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(contents)
    data = stream.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    return re.sub(rb"(T\x02\x00\x00\x00u1q.)\x89\x88", b"\\1K\x00K\x01", data, flags=re.DOTALL)


class Attack:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@dataclasses.dataclass
class Tiny:
    """The archive as bytes, its files, and what is in them: pixels (N, 3072) and labels by name of the batch."""

    files: dict
    pixels: dict
    labels: dict

    @property
    def archive(self):
        return packed(self.files)


def packed(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (size, 3072), dtype=np.uint8) for name, size in SIZES.items()}
    labels = {name: rng.integers(0, 10, size).tolist() for name, size in SIZES.items()}
    files = {}
    for name, size in SIZES.items():
        names = [f"image_{place}.png" for place in range(size)]
        contents = {"batch_label": name, "labels": labels[name], "data": pixels[name], "filenames": names}
        files[name] = pickled(contents)
    files["batches.meta"] = pickled({"num_cases_per_batch": 4, "label_names": NAMES, "num_vis": 3072})
    return Tiny(files, pixels, labels)


@pytest.fixture
def official(tiny, monkeypatch):
    """torchvision takes the tiny archive for the official one, at an address where nobody listens."""
    archive = tiny.archive
    sums = {name: md5(data) for name, data in tiny.files.items()}
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/" + ARCHIVE)  # the discard port
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in SIZES if name != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    monkeypatch.delenv(cifar.MIRROR, raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return archive


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        # torchvision opens an address once to follow redirections and hangs up before the file has come.
        with contextlib.suppress(ConnectionError):
            super().copyfile(source, outputfile)


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which it is served until the test ends or calls the third."""
    folder = tmp_path / "served"
    folder.mkdir()
    service = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=partial(service.serve_forever, poll_interval=0.02))
    thread.start()

    def close():
        if thread.is_alive():
            service.shutdown()
            thread.join()
            service.server_close()

    yield folder, f"http://127.0.0.1:{service.server_port}/{ARCHIVE}", close
    close()


def assert_holds(found, tiny):
    expected = np.concatenate([tiny.pixels[name] for name in SIZES if name != "test_batch"])
    assert np.array_equal(found.train.numpy(), expected.reshape(-1, 3, 32, 32))
    assert np.array_equal(found.test.numpy(), tiny.pixels["test_batch"].reshape(-1, 3, 32, 32))
    assert found.train_labels.tolist() == [
        label for name in SIZES if name != "test_batch" for label in tiny.labels[name]
    ]
    assert found.test_labels.tolist() == tiny.labels["test_batch"]
    assert found.train.dtype == torch.uint8
    assert found.train.is_contiguous()
    assert found.train_labels.dtype == torch.int64
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (found.flips, found.classes, found.name) == (True, 10, "cifar10")


def test_a_download_has_a_timeout(official, tmp_path, monkeypatch):
    seen = []

    def silent(self, *_, **__):
        seen.append(socket.getdefaulttimeout())
        raise OSError("no answer")

    monkeypatch.setattr(CIFAR10, "__init__", silent)
    refusal(tmp_path)
    assert seen == [cifar._PATIENCE]
    assert socket.getdefaulttimeout() is None


def refusal(folder, **options):
    """The one line that :func:`load` refuses with; it says which file to put where, and what to do without."""
    with pytest.raises(ResultError) as caught:
        load("cifar10", folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in (ARCHIVE, str(folder), CIFAR10.tgz_md5, cifar.MIRROR, "--dataset digits works without it"):
        assert part in message
    return message


@pytest.mark.parametrize("through", ["url", "mirror"])
def test_download_and_a_second_load_without_network(through, tiny, official, server, tmp_path, monkeypatch, capfd):
    served, url, close = server
    (served / ARCHIVE).write_bytes(official)
    if through == "url":
        monkeypatch.setattr(CIFAR10, "url", url)
    else:
        monkeypatch.setenv(cifar.MIRROR, url)
    folder = tmp_path / "deep" / "data"
    assert_holds(load("cifar10", folder), tiny)
    close()
    assert_holds(load("cifar10", folder), tiny)
    assert_holds(load("cifar10", folder, download=False), tiny)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.filterwarnings("error")
def test_an_archive_at_hand_is_used_without_network(download, tiny, official, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(official)
    assert_holds(load("cifar10", tmp_path, download=download), tiny)


def test_two_processes_download_once(tiny, official, tmp_path):
    """The one that waited takes what the other one has fetched; nobody listens at the address."""
    waits = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / ARCHIVE, print):
            second = pool.submit(load, "cifar10", tmp_path, report=lambda line: waits.set())
            assert waits.wait(60)
            (tmp_path / ARCHIVE).write_bytes(official)
        assert_holds(second.result(60), tiny)
    assert not list(tmp_path.glob("*.lock"))


def test_no_network(official, server, tmp_path, monkeypatch):
    _, url, close = server
    close()
    monkeypatch.setattr(CIFAR10, "url", url)
    message = refusal(tmp_path / "data")
    assert url in message
    assert "refused" in message


def test_no_such_file_on_the_mirror(official, server, tmp_path, monkeypatch):
    monkeypatch.setenv(cifar.MIRROR, server[1])
    assert "404" in refusal(tmp_path)


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:x/y", "http://127.0.0.1 /y"])
def test_addresses_that_are_none(address, official, tmp_path, monkeypatch):
    monkeypatch.setenv(cifar.MIRROR, address)
    assert address in refusal(tmp_path)


def test_a_folder_that_is_a_file(official, tmp_path):
    (tmp_path / "data").write_text("")
    refusal(tmp_path / "data")


def test_not_there_and_not_to_be_downloaded(official, tmp_path):
    assert "from http" not in refusal(tmp_path, download=False)


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_corrupt_download_is_refused(damage, official, server, tmp_path, monkeypatch):
    served, url, _ = server
    changed = official[:50] + bytes([official[50] ^ 1]) + official[51:]
    (served / ARCHIVE).write_bytes({"cut": official[:-100], "changed": changed, "other": b"<html>"}[damage])
    monkeypatch.setenv(cifar.MIRROR, url)
    assert "md5 sums differ" in refusal(tmp_path / "data")
    (served / ARCHIVE).write_bytes(official)  # what is left of it is not in the way of a good one
    assert len(load("cifar10", tmp_path / "data").test) == 6


@pytest.mark.parametrize("download", [True, False])
def test_a_corrupt_archive_at_hand_is_refused(download, official, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(official[:-1])
    refusal(tmp_path, download=download)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_tampered_file_is_refused_unread(name, tiny, official, tmp_path):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for each, data in tiny.files.items():
        (folder / each).write_bytes(data)
    attack = pickle.dumps(Attack(tmp_path / "attacked"))
    (folder / name).write_bytes(attack)
    refusal(tmp_path, download=False)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(attack)  # it would have been
    assert (tmp_path / "attacked").exists()


def test_a_tampered_batch_in_an_archive_is_refused_unread(tiny, official, tmp_path, monkeypatch):
    """Also where the archive's own md5 sum has been made to fit."""
    attack = pickle.dumps(Attack(tmp_path / "attacked"))
    archive = packed({**tiny.files, "data_batch_1": attack})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    (tmp_path / ARCHIVE).write_bytes(archive)
    refusal(tmp_path)
    assert not (tmp_path / "attacked").exists()


# --- digits and synthetic images -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load("digits", tmp_path_factory.mktemp("unused"))


def test_digits_are_all_there_once(digits):
    """As pairs of image and label, in whatever order: none twice, none left out, none with another's label."""
    assert digits.train.shape == (1500, 3, 32, 32)
    assert digits.test.shape == (297, 3, 32, 32)
    everything = torch.cat([digits.train, digits.test])
    labels = torch.cat([digits.train_labels, digits.test_labels])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of the data set
    expected = enlarged(torch.from_numpy(load_digits().images))
    found = sorted((label, image.numpy().tobytes()) for label, image in zip(labels.tolist(), everything, strict=True))
    wanted = zip(load_digits().target.tolist(), expected, strict=True)
    assert found == sorted((label, image.expand(3, 32, 32).numpy().tobytes()) for label, image in wanted)


def enlarged(images):
    """Linear interpolation (N, 8, 8) -> (N, 32, 32) by its matrix: pixel i has its centre at (i + 1/2)/4 - 1/2."""
    places = ((torch.arange(32.0, dtype=torch.float64) + 0.5) / 4 - 0.5).clamp(0, 7)
    matrix = (1 - (places[:, None] - torch.arange(8)).abs()).clamp(min=0)
    return (matrix @ images @ matrix.T * (255 / 16)).round().to(torch.uint8)


def test_digits_statistics_and_kind(digits):
    assert (digits.flips, digits.classes, digits.name) == (False, 10, "digits")
    assert digits.train.dtype == digits.test.dtype == torch.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    values = normalise(digits.train, digits.mean, digits.std, torch.float64)
    assert values.mean().abs() < RESNET["digits"]
    assert abs(values.square().mean() - 1) < RESNET["digits"]
    assert all(isinstance(value, float) for value in (*digits.mean, *digits.std))


def test_digits_are_always_the_same(digits, tmp_path):
    torch.manual_seed(5)
    again = load("digits", tmp_path)
    assert torch.equal(again.train, digits.train)
    assert torch.equal(again.test_labels, digits.test_labels)
    assert digits.test_labels[:10].tolist() == PINNED_LABELS
    assert not list(tmp_path.iterdir())


def test_synthetic_images_have_the_shape_of_cifar10():
    images = cifar.synthetic(70, 30)
    assert images.train.shape == (70, 3, 32, 32)
    assert images.test.shape == (30, 3, 32, 32)
    assert images.train.dtype == torch.uint8
    assert set(images.train_labels.tolist()) <= set(range(10))
    assert torch.equal(images.train, cifar.synthetic(70, 30).train)
    assert images.train.float().std() == pytest.approx(256 / 12**0.5, rel=SYNTHETIC)


def test_synthetic_sizes_are_those_of_cifar10(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "randint", lambda low, high, size, **_: torch.empty(size, dtype=torch.uint8))
    images = load("synthetic", tmp_path)
    assert (len(images.train), len(images.test)) == (len(images.train_labels), len(images.test_labels))
    assert (len(images.train), len(images.test)) == (50_000, 10_000)


def test_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match="data set 'mnist' is not allowed: cifar10, images, digits, synthetic"):
        load("mnist", tmp_path)


def test_images_move_as_a_whole():
    moved = cifar.synthetic(3, 2).to("meta")
    tensors = [moved.train, moved.train_labels, moved.test, moved.test_labels]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.name == "synthetic"


# --- draws -----------------------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_draws_are_pinned():
    found = draw(8, generator(), flips=True)
    assert found.order.tolist() == PINNED_ORDER
    assert found.offsets.tolist() == PINNED_OFFSETS
    assert found.flips.tolist() == PINNED_FLIPS


def test_draws_follow_the_documented_order():
    found, source = draw(1000, generator(3), flips=True), generator(3)
    assert torch.equal(found.order, torch.randperm(1000, generator=source))
    assert torch.equal(found.offsets, torch.randint(0, 9, (1000, 2), generator=source))
    assert torch.equal(found.flips, torch.rand(1000, generator=source) < 0.5)
    assert torch.bincount(found.offsets.flatten(), minlength=9).min() > 0
    assert found.offsets.max() == 8


def test_without_flips_the_stream_is_the_same():
    one, other = generator(1), generator(1)
    plain, mirrored = draw(100, one, flips=False), draw(100, other, flips=True)
    assert torch.equal(plain.order, mirrored.order)
    assert torch.equal(plain.offsets, mirrored.offsets)
    assert torch.equal(one.get_state(), other.get_state())
    assert plain.flips.dtype == torch.bool
    assert not plain.flips.any()
    assert mirrored.flips.any()


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    """More images than a block, not a multiple of it."""
    return cifar.synthetic(cifar._BLOCK + 300, 1).train


def by_torchvision(pixels, draws):
    """Image by image, from PIL images, with the transforms that training loops use."""
    images = []
    for place, (row, column), flip in zip(draws.order, draws.offsets.tolist(), draws.flips.tolist(), strict=True):
        image = Image.fromarray(pixels[place].permute(1, 2, 0).numpy())
        image = transforms.crop(transforms.pad(image, 4), row, column, 32, 32)
        image = transforms.hflip(image) if flip else image
        images.append(transforms.normalize(transforms.to_tensor(image), cifar.MEAN, cifar.STD))
    return torch.stack(images)


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("source", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("target", [torch.contiguous_format, torch.channels_last])
def test_augment_has_the_bits_of_torchvision(flips, source, target, pixels):
    draws = draw(len(pixels), generator(), flips)
    images = pixels.contiguous(memory_format=source)
    found = augment(images, draws, cifar.MEAN, cifar.STD, memory_format=target)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=target)
    assert torch.equal(found, by_torchvision(pixels, draws))


def test_every_offset_has_the_bits_of_torchvision(pixels):
    """All 81 crops, plain and mirrored, of the same image."""
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9)).repeat(2, 1)
    draws = Draws(torch.full((162,), 7), offsets, torch.arange(162) < 81)
    found = augment(pixels, draws, cifar.MEAN, cifar.STD)
    assert torch.equal(found, by_torchvision(pixels, draws))
    assert len(found.flatten(1).unique(dim=0)) == 162


def test_normalise_has_the_bits_of_torchvision(pixels):
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 8, 32).expand(1, 3, 8, 32).repeat(1, 1, 4, 1)
    images = torch.cat([every, pixels])
    found = normalise(images, cifar.MEAN, cifar.STD)
    expected = [
        transforms.normalize(transforms.to_tensor(image.permute(1, 2, 0).numpy()), cifar.MEAN, cifar.STD)
        for image in images
    ]
    assert torch.equal(found, torch.stack(expected))
    last = normalise(images, cifar.MEAN, cifar.STD, torch.float32, torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_rounded_once(dtype, pixels):
    draws = draw(len(pixels), generator(), True)
    found = augment(pixels, draws, cifar.MEAN, cifar.STD, dtype=dtype)
    assert torch.equal(found, augment(pixels, draws, cifar.MEAN, cifar.STD).to(dtype))


def test_float64_is_computed_in_float64(pixels):
    found = normalise(pixels, cifar.MEAN, cifar.STD, torch.float64).numpy()
    mean, std = np.array(cifar.MEAN)[:, None, None], np.array(cifar.STD)[:, None, None]
    assert np.array_equal(found, (pixels.numpy() / 255 - mean) / std)


def test_a_part_of_the_draws_gives_a_part_of_the_epoch(pixels):
    whole = draw(len(pixels), generator(), True)
    part = Draws(whole.order[100:228], whole.offsets[100:228], whole.flips[100:228])
    expected = augment(pixels, whole, cifar.MEAN, cifar.STD)[100:228]
    assert torch.equal(augment(pixels, part, cifar.MEAN, cifar.STD), expected)


NEUTRAL = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # mean and std that give back the values of the pixels


def values(images, draws):
    """Augmented, as whole numbers again."""
    return augment(images, draws, *NEUTRAL, dtype=torch.float64).round().to(torch.uint8)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 20))
def test_the_centre_crop_is_a_permutation_of_the_images(pixels, seed, count):
    images = pixels[:count]
    order = torch.randperm(count, generator=generator(seed))
    draws = Draws(order, torch.full((count, 2), 4), torch.zeros(count, dtype=torch.bool))
    assert torch.equal(values(images, draws), images[order])


@given(row=st.integers(0, 8), column=st.integers(0, 8), flip=st.booleans())
def test_crops_move_images_over_a_black_ground(pixels, row, column, flip):
    """Every pixel that stays in sight keeps its value and is moved by the same step; the others are 0."""
    images = pixels[:2].clamp(min=1)
    draws = Draws(torch.arange(2), torch.tensor([[row, column]] * 2), torch.tensor([flip] * 2))
    found = values(images, draws)
    found = found.flip(3) if flip else found
    down, right = 4 - row, 4 - column
    seen = slice(max(down, 0), 32 + min(down, 0)), slice(max(right, 0), 32 + min(right, 0))
    origin = slice(max(-down, 0), 32 + min(-down, 0)), slice(max(-right, 0), 32 + min(-right, 0))
    assert torch.equal(found[:, :, *seen], images[:, :, *origin])
    assert (found > 0).sum() == 2 * 3 * (32 - abs(down)) * (32 - abs(right))


@given(seed=st.integers(0, 2**31))
def test_mirrored_twice_is_the_image(pixels, seed):
    images = pixels[:5]
    flips = torch.rand(5, generator=generator(seed)) < 0.5
    draws = Draws(torch.arange(5), torch.full((5, 2), 4), flips)
    once = values(images, draws)
    assert torch.equal(once[flips], images[flips].flip(3))
    assert torch.equal(values(once, draws), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_bits_are_those_of_the_cpu_and_nobody_waits(pixels):
    draws = draw(len(pixels), generator(), True)
    expected = augment(pixels, draws, cifar.MEAN, cifar.STD)
    images = pixels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(images, draws, cifar.MEAN, cifar.STD, memory_format=torch.channels_last)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
