"""Images in class folders and tables: pixels, classes, what is decoded again and what is not, recognition, refusals."""

import hashlib
import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tolerances import EXACT

from varpro import image_files, results
from varpro.results import ResultError
from varpro.runs.bookkeeping import locked
from VarPro_resnet import cifar, folders
from VarPro_resnet.Experiment import main

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["ant", "bee", "cat"]


def drawn(seed: int, width: int = 32, height: int = 32) -> np.ndarray:
    """Pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four training images and two test images of each of three classes."""
    top = tmp_path / "pictures"
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                write(top / part / name / f"{number}.png", encoded(drawn(100 * len(part) + 10 * label + number)))
    return top


def loaded(folder: Path, **options) -> cifar.Images:
    return cifar.load("images", folder, cache=folder.parent / "cache", **{"report": lambda _: None} | options)


def test_what_is_at_hand(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(image_files.DATA, str(folder))
    assert image_files.folder() == folder
    assert image_files.in_folders(folder)
    assert image_files.at_hand(folder)
    half, archive, other = (tmp_path / name for name in ("half", "archive", "unpacked"))
    (half / "train").mkdir(parents=True)
    assert image_files.in_folders(half)  # so that a run says what it lacks, and downloads nothing
    assert not image_files.at_hand(half)
    write(archive / image_files.ARCHIVE, b"")
    write(image_files.unpacked(other), b"")
    for place in (archive, other):
        assert not image_files.in_folders(place)
        assert image_files.at_hand(place)
    assert not image_files.at_hand(tmp_path / "nowhere")
    tables = tmp_path / "tables"
    write(tables / "train-0.parquet", b"")
    assert not image_files.at_hand(tables)
    write(tables / "test-0.parquet", b"")
    assert image_files.in_folders(tables)
    assert image_files.at_hand(tables)


def test_labels_of_any_number_have_a_digest():
    labels = torch.tensor([255, 256, 512])
    assert len(set(folders._digests(torch.zeros(3, 3, 1, 1, dtype=torch.uint8), labels))) == 3


def as_images(*pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


# --- what is read ------------------------------------------------------------------------------------------------


def test_pixels_labels_and_statistics(folder):
    found = loaded(folder)
    expected = as_images(*(drawn(500 + 10 * label + number) for label in range(3) for number in range(4)))
    assert torch.equal(found.train, expected)
    assert found.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(found.test, as_images(*(drawn(400 + 10 * label + n) for label in range(3) for n in range(2))))
    assert found.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.train.dtype == torch.uint8
    assert found.train.is_contiguous()
    assert (found.classes, found.flips, found.name) == (3, True, "images")
    assert found.class_names == tuple(sorted(path.name for path in (folder / "train").iterdir()))
    assert not loaded(folder, flips=False).flips
    values = expected.double().numpy() / 255
    np.testing.assert_allclose(found.mean, values.mean(axis=(0, 2, 3)), rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.std, values.std(axis=(0, 2, 3)), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ("suffix", "data", "expected"),
    [
        (".PNG", encoded(drawn(1)), drawn(1)),
        (".webp", encoded(drawn(1), "WEBP", lossless=True), drawn(1)),
        (".jpg", encoded(np.full((32, 32, 3), 90, np.uint8), "JPEG"), np.full((32, 32, 3), 90)),
        (".jpeg", encoded(np.full((32, 32, 3), 90, np.uint8), "JPEG", "CMYK"), np.full((32, 32, 3), 90)),
        (".png", encoded(drawn(1)[:, :, 0], mode="L"), drawn(1)[:, :, :1].repeat(3, axis=2)),
        (
            ".png",
            encoded(np.where(drawn(1) > 127, 255, 0).astype(np.uint8), mode="P"),
            np.where(drawn(1) > 127, 255, 0),
        ),
        (".png", encoded(drawn(1), mode="RGBA"), drawn(1)),
    ],
    ids=["png", "webp", "jpeg", "cmyk", "grey", "palette", "alpha"],
)
def test_kinds_of_files(suffix, data, expected, folder):
    write(folder / "train" / "ant" / f"-first{suffix}", data)  # before the digits
    assert torch.equal(loaded(folder).train[0], as_images(expected.astype(np.uint8))[0])


def test_folders_in_folders_and_what_is_no_image(folder):
    before = loaded(folder)
    write(folder / "train" / "bee" / ".hidden.png", b"")
    write(folder / "train" / "bee" / "notes.txt", b"")
    write(folder / "train" / ".cache" / "0.png", b"")
    write(folder / "readme.png", b"")
    assert torch.equal(loaded(folder).train, before.train)
    write(folder / "train" / "bee" / "deep" / "er" / "0.png", encoded(drawn(7)))
    found = loaded(folder)
    assert torch.equal(found.train[8], as_images(drawn(7))[0])
    assert found.train_labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4


@pytest.mark.parametrize("size", [(20, 30), (64, 64)])
def test_other_sizes_are_resized_with_a_line_every_time(size, tmp_path):
    for part in ("train", "test"):
        for name in CLASSES:
            write(tmp_path / "set" / part / name / "0.png", encoded(drawn(3, *size)))
    expected = Image.fromarray(drawn(3, *size)).resize((32, 32), Image.Resampling.BILINEAR)
    for first in (True, False):
        lines = []
        found = loaded(tmp_path / "set", report=lines.append)
        assert torch.equal(found.train[0], as_images(np.asarray(expected))[0])
        shape = "" if size[0] == size[1] else ", whatever their proportions"
        assert lines[-1] == f"images of {size[0]} x {size[1]} pixels are resized to 32 x 32{shape}"
        assert len(lines) == (2 if first else 1)


def test_a_class_may_be_missing_from_the_test_images(folder):
    for path in (folder / "test" / "bee").iterdir():
        path.unlink()
    assert loaded(folder).test_labels.tolist() == [0, 0, 2, 2]
    (folder / "test" / "bee").rmdir()
    assert loaded(folder).test_labels.tolist() == [0, 0, 2, 2]


# --- what is kept ------------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_anew_where_something_changed(folder, monkeypatch):
    lines = []

    def decodes() -> bool:
        lines.clear()
        found.append(loaded(folder, report=lines.append))
        return lines == [f"decoding {len(found[-1].train) + len(found[-1].test)} images in {folder}, this once"]

    found = []
    assert decodes()
    (kept,) = (folder.parent / "cache").iterdir()
    assert not decodes()
    assert torch.equal(found[0].train, found[1].train)
    assert found[0].digest == found[1].digest

    (folder / "train" / "ant" / "0.png").write_bytes(encoded(drawn(1)))  # another image of perhaps the same size
    os.utime(folder / "train" / "ant" / "0.png", ns=(1, 1))
    assert decodes()
    assert found[-1].digest != found[0].digest
    (folder / "test" / "bee" / "0.png").rename(folder / "test" / "bee" / "9.png")
    assert decodes()
    (folder / "test" / "bee" / "9.png").unlink()
    assert decodes()

    spoiled = results.load(kept)
    spoiled["train"][3, 1, 4, 5] += 1
    results.save(kept, spoiled)
    assert decodes()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert decodes()
    results.save(kept, results.load(kept) | {"format": 0})
    assert decodes()
    assert not decodes()
    assert list((folder.parent / "cache").iterdir()) == [kept]


def test_what_a_killed_process_left_of_decoded_images_goes(folder):
    loaded(folder)
    (kept,) = (folder.parent / "cache").iterdir()
    left = kept.with_name(f".{kept.name}.abc.tmp")
    left.touch()
    write(folder / "train" / "ant" / "more.png", encoded(drawn(7)))
    loaded(folder)
    assert list(kept.parent.iterdir()) == [kept]


def test_two_processes_decode_once(folder):
    """The one that waited finds what the other one has kept."""
    lines, there = [], folder.parent / "cache"
    waits = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        if "waits for" in line:
            waits.set()

    loaded(folder)
    (kept,) = there.iterdir()
    whole = kept.read_bytes()
    kept.unlink()
    with ThreadPoolExecutor(1) as pool:
        with locked(kept, lines.append):
            second = pool.submit(loaded, folder, report=report)
            assert waits.wait(60)
            kept.write_bytes(whole)
        assert len(second.result(60).train) == 12
    assert [line for line in lines if "decoding" in line] == []


def test_a_folder_that_is_linked_into_itself_is_looked_into_once(folder):
    inside = folder / "train" / "ant"
    for name in ("again", "and again"):
        (inside / name).symlink_to(inside, target_is_directory=True)
    assert loaded(folder).train_labels.bincount().tolist() == [4, 4, 4]


def test_equal_names_in_different_places_are_different_sets(folder):
    other = folder.parent / "elsewhere" / folder.name
    for part in ("train", "test"):
        for name in CLASSES[:2]:
            write(other / part / name / "0.png", encoded(drawn(5)))
    assert loaded(folder).classes == 3
    assert cifar.load("images", other, cache=folder.parent / "cache", report=lambda _: None).classes == 2
    assert loaded(folder).classes == 3
    assert len(list((folder.parent / "cache").iterdir())) == 2


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def fingerprint(labelled: list[tuple[int, np.ndarray]]) -> str:
    """As it is defined: of the sorted digests of a byte of label and the pixels row by row."""
    each = sorted(hashlib.sha256(bytes([label]) + pixels.tobytes()).digest() for label, pixels in labelled)
    return hashlib.sha256(b"".join(each)).hexdigest()


def test_cifar10_is_recognised_whatever_the_names_of_its_files(folder, monkeypatch):
    own = {
        part: fingerprint([(label, drawn(start + 10 * label + n)) for n in range(count) for label in range(3)])
        for part, start, count in (("train", 500, 4), ("test", 400, 2))
    }
    with pytest.raises(ResultError, match=r"train images are not the official ones of CIFAR-10 \(12 with fingerprint"):
        cifar.load("cifar10", folder, cache=folder.parent / "cache", report=lambda _: None)
    monkeypatch.setattr(cifar, "FINGERPRINTS", own)
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "ant" / "z.png")
    found = cifar.load("cifar10", folder, cache=folder.parent / "cache", report=lambda _: None)
    assert (found.mean, found.std) == (cifar.MEAN, cifar.STD)
    assert (found.flips, found.name, len(found.train)) == (True, "cifar10", 12)
    (folder / "test" / "bee" / "0.png").rename(folder / "test" / "cat" / "8.png")  # in the wrong class
    with pytest.raises(ResultError, match=r"pictures: its test images .*; --dataset images takes any images"):
        cifar.load("cifar10", folder, cache=folder.parent / "cache", report=lambda _: None)


def test_half_a_layout_is_not_taken_for_a_place_to_download_to(folder):
    (folder / "test").rename(folder / "validation")
    with pytest.raises(ResultError, match="no folder test/ there; a set of images is laid out as train/<class>"):
        cifar.load("cifar10", folder, download=False)


@pytest.mark.parametrize("column", ["img", "image"])
def test_tables_of_hugging_face(column, tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for part, files in (("train", 2), ("test", 1)):
        for number in range(files):
            rows = [{"bytes": encoded(drawn(10 * number + label)), "path": None} for label in (1, 0)]
            path = tmp_path / "set" / "plain_text" / f"{part}-0000{number}-of-0000{files}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(arrow.table({column: rows, "label": [1, 0]}), path)
    found = loaded(tmp_path / "set")
    assert torch.equal(found.train, as_images(*(drawn(seed) for seed in (1, 0, 11, 10))))
    assert found.train_labels.tolist() == [1, 0, 1, 0]
    assert found.classes == 2
    monkeypatch.setattr(folders, "_decoded", None)  # again, from what is kept
    assert torch.equal(loaded(tmp_path / "set").train, found.train)
    with pytest.raises(ResultError, match="not the official ones of CIFAR-10"):
        cifar.load("cifar10", tmp_path / "set", cache=tmp_path / "cache")
    monkeypatch.undo()
    write(tmp_path / "set" / "plain_text" / "train-00000-of-00002.parquet", b"PAR1")
    with pytest.raises(ResultError, match=r"train-00000-of-00002.parquet: not a table with the columns img or image"):
        loaded(tmp_path / "set")


@pytest.mark.parametrize(
    ("train_labels", "test_labels"), [([0, 0], [1, 0]), ([0, 2], [0, 2]), ([0, 1], [0, 2]), ([0, 1], [])]
)
def test_tables_with_labels_that_are_no_classes(train_labels, test_labels, tmp_path):
    """One class only, a gap, one that is never trained on, and no test."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "set").mkdir()
    for part, labels in (("train", train_labels), ("test", test_labels)):
        rows = [{"bytes": encoded(drawn(number)), "path": None} for number in range(len(labels))]
        columns = {"img": arrow.array(rows, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}))}
        parquet.write_table(
            arrow.table(columns | {"label": arrow.array(labels, arrow.int64())}), tmp_path / "set" / f"{part}.parquet"
        )
    with pytest.raises(ResultError, match=r"its tables need images in both parts, the training one with all labels"):
        loaded(tmp_path / "set")


@pytest.mark.parametrize(("dataset", "package"), [("digits", "sklearn.datasets"), ("cifar10", "torchvision.datasets")])
def test_data_whose_package_is_not_there(dataset, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResultError, match=r"^--dataset \w+: .*the package .*: pip install"):
        cifar.load(dataset, tmp_path, download=False)


def test_tables_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / "set" / "train.parquet", b"")
    write(tmp_path / "set" / "test.parquet", b"")
    with pytest.raises(
        ResultError, match=r"train.parquet: parquet files need the package pyarrow: pip install pyarrow"
    ):
        loaded(tmp_path / "set")


# --- the script --------------------------------------------------------------------------------------------------


TINY = ["--optimizer", "sgdm", "--batch_size", "6", "--epochs", "1", "--final_epochs", "0", "--dataset", "images"]
DEEP = encoded(np.zeros((32, 32, 3), np.uint8))


def sixteen_bits() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"train/bee/1.png": encoded(drawn(1))[:-500]}, "train/bee/1.png: not an image that can be read"),
        ({"train/bee/1.png": b"text"}, "train/bee/1.png: not an image that can be read (UnidentifiedImageError)"),
        ({"train/ant/0.png": b""}, "train/ant/0.png: not an image that can be read"),
        ({"test/bee/1.png": encoded(drawn(1, 31, 32))}, "has 31 x 32 pixels, but "),
        ({"test/bee/1.png": sixteen_bits()}, "test/bee/1.png: has more than 8 bits a channel"),
        ({"train/dog": None}, "train/dog: no images there (PNG, JPEG or WebP)"),
        ({"test/dog": None}, "test/dog: a class without a folder in "),
        ({"train": None, "train/ant": None}, "train: has one class, 'ant'; at least two classes are needed"),
        ({"train": None}, "train: has no folder of a class; at least two classes are needed"),
        ({"test": None}, "test: no images there (PNG, JPEG or WebP)"),
        ({".": None}, "no folder train/ there; a set of images is laid out as train/<class>/*.png and"),
        (
            {f"train/{name}/{number}.png": DEEP for name in CLASSES for number in range(4)},
            "a colour has the same brightness everywhere",
        ),
    ],
)
def test_what_cannot_be_is_one_line(files, says, folder, capsys):
    """A name with None stands for an empty folder, whatever was there."""
    for name, data in files.items():
        if data is None:
            for path in sorted((folder / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (folder / name).mkdir(exist_ok=True)
        else:
            write(folder / name, data)
    output = folder.parent / "out"
    with pytest.raises(SystemExit) as stopped:
        main([*TINY, "--data-dir", str(folder), "--output", str(output)])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert "brightness" in says or not [path for path in output.rglob("*") if path.is_file()]


def test_a_run_on_images_of_ones_own(folder, capsys):
    """The result says which images they were; those of another folder are another run."""
    arguments = [*TINY, "--data-dir", str(folder), "--output", str(folder.parent / "out"), "--device", "cpu"]
    main(arguments)
    (path,) = (folder.parent / "out").glob("*.pt")
    found = results.load(path)
    digest = loaded(folder).digest
    assert path.name.startswith(f"dataset=images_data={digest[:12]}_optimizer=sgdm_")
    assert (found["config"]["data"], found["config"]["images"]) == (digest[:12], digest)
    assert found["network"]["readout.weight"].shape == (3, 64)
    capsys.readouterr()
    main(arguments)
    assert capsys.readouterr().out == f"sgdm seed 0: kept {path}\n"
    main([*arguments, "--no-flips"])
    write(folder / "train" / "ant" / "5.png", encoded(drawn(8)))
    main(arguments)
    names = sorted(path.name for path in (folder.parent / "out").glob("*.pt"))
    assert len(names) == 3
    assert sum("_flips=False_" in name for name in names) == 1
