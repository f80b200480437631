"""Image tasks: folders in both layouts, packed files, digits; decoding, augmentation; and what is wrong with a set."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from knowledge_distillation import ConfigError, DataError
from knowledge_distillation.data import images, load_images
from knowledge_distillation.data.augmentation import Augmentation, ImageCollator
from knowledge_distillation.data.image_format import saved_format
from knowledge_distillation.data.pictures import ImageRows, ImageSplit, squared


def picture(label: int, number: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
    """A picture whose first channel tells its label, and its second its number."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = 20 * label, 10 * number
    return Image.fromarray(pixels)


def by_class(folder: Path, numbers: dict[str, int], size: tuple[int, int] = (10, 8)) -> Path:
    for label, (name, number) in enumerate(sorted(numbers.items())):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            picture(label, i, size).save(folder / name / f"{i}.png")
    return folder


def flat(folder: Path, labels: list[int]) -> Path:
    folder.mkdir(parents=True)
    for number, label in enumerate(labels):
        picture(label, number).save(folder / f"{label}_{number}.png")
    return folder


def packed(path: Path, labels: dict[str, list[int]], **changes: Any) -> Path:
    """The archive of JPEG files end to end."""
    arrays: dict[str, Any] = {"class_names": np.array([f"kind{i}" for i in range(10)])}
    for split, mine in labels.items():
        files = []
        for number, label in enumerate(mine):
            held = io.BytesIO()
            picture(label % 4, number % 20, (32, 32)).save(held, "JPEG", quality=95)
            files.append(held.getvalue())
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{split}_labels"] = np.array(mine, dtype=np.uint8)
    arrays |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation"), ("Train", "dev"), ("train", "test")])
def test_a_folder_for_each_class(tmp_path, names):
    by_class(tmp_path / names[0], {"dog": 3, "cat": 2, "owl": 4})
    by_class(tmp_path / names[1], {"dog": 1, "cat": 1, "owl": 2})
    data = load_images("image_folder", tmp_path)
    train, validation = data["train"], data["validation"]
    assert train.form.classes == ("cat", "dog", "owl") and (len(train), len(validation)) == (9, 4)
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2] and validation.labels.tolist() == [0, 1, 2, 2]
    assert train.form.size == 8  # the shorter side of the first picture
    for row in (train[i] for i in range(len(train))):
        assert row["pixel_values"].shape == (8, 8, 3) and (row["pixel_values"][..., 0] == 20 * row["labels"]).all()


def test_files_named_by_label_and_number(tmp_path):
    flat(tmp_path / "training", [2, 0, 1, 1])
    flat(tmp_path / "validation", [1, 0])
    flat(tmp_path / "testing", [0, 0, 2])
    data = load_images("image_folder", tmp_path)
    assert {split: rows.labels.tolist() for split, rows in data.items()} == {
        "train": [0, 1, 1, 2],
        "validation": [0, 1],
        "test": [0, 0, 2],
    }
    assert data["train"].form.classes == ("0", "1", "2") and "id2label" not in data["train"].form.fields()


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    by_class(tmp_path / "train", {str(n): 1 for n in range(12)})
    by_class(tmp_path / "val", {str(n): 1 for n in range(12)})
    assert load_images("image_folder", tmp_path)["train"].form.classes == tuple(map(str, range(12)))


def test_a_tenth_of_each_class_is_held_out_where_nobody_did(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two" / "train"):
        by_class(folder, {"a": 20, "b": 10, "c": 2})
    for root in (tmp_path / "one", tmp_path / "two"):
        data = load_images("image_folder", root)
        assert np.bincount(data["validation"].labels).tolist() == [2, 1, 1]
        assert np.bincount(data["train"].labels).tolist() == [18, 9, 1]
        again = load_images("image_folder", root)["validation"].images
        assert np.array_equal(again, data["validation"].images)
        parts = [{(int(p[0, 0, 0]), int(p[0, 0, 1])) for p in data[split].images} for split in ("train", "validation")]
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 32


def enormous() -> bytes:
    """A small file whose header says that it holds more pixels than Pillow reads."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "BMP")
    return file.getvalue()[:18] + struct.pack("<ii", 40_000, 40_000) + file.getvalue()[26:]


def test_a_named_task_reads_a_folder_of_its_name(tmp_path):
    for split in ("train", "test"):
        by_class(tmp_path / "cifar10" / split, {f"kind{n}": 1 for n in range(10)}, (32, 32))
    data = load_images("cifar10", tmp_path)
    assert len(data["train"]) == 10 and data["train"].form.mean == images.IMAGE_TASKS["cifar10"].mean
    by_class(tmp_path / "other" / "train", {"a": 2, "b": 2})
    with pytest.raises(DataError, match="cifar10 has 10 classes; found 2: a, b"):
        load_images("cifar10", tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val" / "cat").rename(root / "val" / "cats"), "cat is missing in .*val.*Nearest: cats."),
        (lambda root: by_class(root / "val", {"bird": 1}), "bird is of no class of the training part"),
        (lambda root: (root / "train" / "dgo").mkdir(), r"train.dgo holds no pictures \(.bmp, "),
        (lambda root: (root / "train").rename(root / "tarin"), "holds val and no folder train"),
        (lambda root: (root / "train" / "cat" / "1.png").write_bytes(b"no png"), r"train.cat.1.png cannot be read as"),
        (
            lambda root: (root / "val" / "dog" / "0.png").write_bytes((root / "train/dog/0.png").read_bytes()[:50]),
            r"val.dog.0.png cannot be read as a picture",
        ),
        (
            lambda root: (root / "train" / "cat" / "1.png").write_bytes(enormous()),
            r"train.cat.1.png cannot be read as",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_of_classes(tmp_path, change, message):
    by_class(tmp_path / "train", {"cat": 2, "dog": 2})
    by_class(tmp_path / "val", {"cat": 1, "dog": 1})
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        data = load_images("image_folder", tmp_path, image_size=8)
        [rows[0] for rows in data.values()]


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 1, 2], [0, 5], r"5_1.png: label 5 is out of range: the training part has 0 to 2"),
        ([0, 1, 3], [0], "labels go from 0 to 3, and no picture has label 2"),
        ([1, 2], [1], "no picture has label 0"),
        ([0, 0], [0], r"holds pictures of one class \(0\)"),
    ],
)
def test_what_is_wrong_with_flat_files(tmp_path, train, val, message):
    flat(tmp_path / "train", train)
    flat(tmp_path / "val", val)
    with pytest.raises(DataError, match=message):
        load_images("image_folder", tmp_path)


def test_what_is_no_folder_of_pictures(tmp_path):
    with pytest.raises(ConfigError, match="task image_folder needs data_dir: the folder of the pictures"):
        load_images("image_folder")
    with pytest.raises(DataError, match="nothing is not a folder; expected one of pictures: a folder of pictures for"):
        load_images("image_folder", tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no pictures.*It holds: nothing"):
        load_images("image_folder", tmp_path)
    picture(0, 0).save(tmp_path / "cat.png")
    with pytest.raises(DataError, match=r"cat.png: its name says no label; expected label_number.jpg"):
        load_images("image_folder", tmp_path)
    with pytest.raises(DataError, match="no image task 'cifra10'.*Nearest: cifar10."):
        load_images("cifra10")
    with pytest.raises(ConfigError, match="image_size is 0; it must be at least 1"):
        load_images("digits", image_size=0)


# --- packed files ----------------------------------------------------------------------------------------------------

TEN = list(range(10))


@pytest.mark.parametrize("place", ["cifar10_jpeg.npz", "cifar10/cifar10_jpeg.npz"])
def test_jpeg_files_in_one_archive(tmp_path, monkeypatch, place):
    path = packed(tmp_path / place, {"train": [3, 1, 2], "test": [0, 9]})
    data = load_images("cifar10", tmp_path)
    assert data["train"].labels.tolist() == [3, 1, 2] and data["validation"].labels.tolist() == [0, 9]
    assert data["train"].form.classes[3] == "kind3" and data["train"][0]["pixel_values"].shape == (32, 32, 3)
    assert abs(int(data["train"][1]["pixel_values"][0, 0, 0]) - 20) <= 4  # JPEG
    assert len(load_images("cifar10", path)["train"]) == 3
    monkeypatch.setenv("IMAGE_DATA_DIR", str(tmp_path))
    assert len(load_images("cifar10")["train"]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "has no array 'train_labels'. Nearest: "),
        ({"train_labels": np.array([0, 1, 10])}, r"npz, train picture 2: label 10 is out of range: there are 10"),
        ({"test_labels": np.array([0])}, r"into 2 files for 1 labels"),
        ({"train_offsets": np.array([0, 1 << 30, 1, 2])}, "expected rising numbers within the bytes"),
        ({"class_names": np.array(["a", "b"])}, "cifar10 has 10 classes; found 2"),
        ({"train_jpeg": np.zeros(1 << 20, np.uint8)}, "train picture 0 cannot be read as a picture"),
        ({"class_names": np.array([{}], dtype=object)}, "is no npz archive of plain arrays"),
    ],
)
def test_what_is_wrong_with_an_archive(tmp_path, changes, message):
    packed(tmp_path / "cifar10_jpeg.npz", {"train": [3, 1, 2], "test": [0, 9]}, **changes)
    with pytest.raises(DataError, match=message):
        load_images("cifar10", tmp_path)["train"][0]


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "cifar10_jpeg.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is no npz archive of plain arrays"):
        load_images("cifar10", tmp_path)


# --- the hub and the digits ------------------------------------------------------------------------------------------


def test_the_hub_is_asked_only_for_a_task_by_name(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        feature = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))})
        rows = {"img": [picture(i, i, (32, 32)) for i in range(3)], "label": [2, 0, 1]}
        return {split: datasets.Dataset.from_dict(rows, features=feature) for split in ("train", "test")}

    monkeypatch.delenv("IMAGE_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_images("cifar10", max_train_samples=2)
    assert asked == ["uoft-cs/cifar10"] and len(data["train"]) == 2 and data["validation"].labels.tolist() == [2, 0, 1]
    assert data["validation"][1]["pixel_values"][0, 0, 1] == 10 and data["train"].form.classes[:2] == ("a", "b")


def test_a_hub_that_fails(monkeypatch):
    import datasets

    def load_dataset(name):
        raise OSError("offline")

    monkeypatch.delenv("IMAGE_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"could not load cifar100 from the hub \(uoft-cs/cifar100\): offline.*IMAGE_DATA"
    ):
        load_images("cifar100")


def test_the_digits():
    data = load_images("digits")
    assert len(data["train"]) + len(data["validation"]) == 1797
    assert np.bincount(data["validation"].labels).min() >= 34 and data["train"].augmentation is None
    assert data["train"].form.fields() == {"image_size": 8, "num_channels": 1, "num_labels": 10}
    batch = data["train"].collator([data["train"][i] for i in range(len(data["train"]))])
    assert batch["pixel_values"].shape[1:] == (1, 8, 8)
    assert abs(float(batch["pixel_values"].mean())) < 1e-3 and abs(float(batch["pixel_values"].std()) - 1) < 1e-3
    assert max(data["train"][i]["pixel_values"].max() for i in range(20)) == 255
    assert load_images("digits", image_size=16)["train"][0]["pixel_values"].shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_train_samples": 0}, "max_train_samples is 0; it must be at least 1"),
        ({"max_eval_samples": -1}, "max_eval_samples is -1; it must be at least 1"),
        ({"mean": (0.5,) * 3, "std": (0.2,) * 3}, "mean and std of digits have 1 numbers, those of std above 0"),
        ({"mean": (0.5,), "std": (0.0,)}, "mean and std of digits have 1 numbers, those of std above 0"),
    ],
)
def test_arguments_out_of_range(given, message):
    with pytest.raises(ConfigError, match=message):
        load_images("digits", **given)


def test_a_sample_is_fixed_and_nested():
    few, more = (load_images("digits", max_train_samples=n, max_eval_samples=5) for n in (20, 40))
    kept = [{rows["train"].numbers[i] for i in range(len(rows["train"]))} for rows in (few, more)]
    assert len(kept[0]) == 20 and kept[0] < kept[1] and len(few["validation"]) == 5


# --- pictures --------------------------------------------------------------------------------------------------------


def test_the_middle_of_a_picture_at_its_shorter_side():
    wide = Image.fromarray(np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 12, 0).repeat(3, 2))
    found = squared(wide, 6, 3)
    assert found.shape == (6, 6, 3) and (found[0] == found[5]).all()
    assert list(found[0, :, 0]) == sorted(found[0, :, 0]) and found[0, [0, 5], 0].tolist() == [65, 165]
    assert squared(wide, 12, 1).shape == (12, 12, 1)


def rows_of(number: int, reads: list[int], size: int = 4) -> ImageRows:
    class Sources(list):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    part = ImageSplit(Sources(picture(0, i, (size, size)) for i in range(number)), np.arange(number) % 2, "picture")
    form = images.ImageFormat(size, 3, (0.5,) * 3, (0.25,) * 3, ("a", "b"))
    return ImageRows(part, np.arange(number), form)


def test_few_pictures_are_kept_and_many_are_read_again(monkeypatch):
    from knowledge_distillation.data import pictures

    reads: list[int] = []
    rows = rows_of(3, reads)
    assert [int(rows[i]["pixel_values"][0, 0, 1]) for i in (2, 0, 2)] == [20, 0, 20] and reads == [0, 1, 2]
    monkeypatch.setattr(pictures, "KEPT_IN_MEMORY", 10)
    reads.clear()
    rows = rows_of(3, reads)
    assert [int(rows[i]["pixel_values"][0, 0, 1]) for i in (2, 0, 2)] == [20, 0, 20] and reads == [2, 0, 2]


def test_a_batch_is_normalised_and_has_its_channels_last_in_memory():
    rows = rows_of(4, [])
    batch = rows.collator([{**rows[i], "sample_index": i} for i in (1, 3)])
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    wanted = torch.tensor([10, 30]) / 255 * 4 - 2
    assert torch.allclose(batch["pixel_values"][:, 1], wanted[:, None, None].expand(2, 4, 4))
    assert batch["labels"].tolist() == [1, 1] and batch["sample_index"].tolist() == [1, 3]


def test_the_form_of_a_model_on_the_hub(tmp_path, monkeypatch):
    form = images.ImageFormat(6, 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b"))
    form.save_pretrained(tmp_path)

    def cached_file(name: str, file: str) -> str:
        if name != "someone/resnet":
            raise OSError("no such file")
        return str(tmp_path / file)

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    assert saved_format("someone/resnet") == {"size": 6, "mean": form.mean, "std": form.std}
    assert (
        saved_format("someone/other") == saved_format("./someone/resnet") == saved_format({"model_type": "vit"}) == {}
    )


def test_the_saved_form_is_the_one_transformers_uses(tmp_path):
    from transformers import AutoImageProcessor

    form = images.ImageFormat(16, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), ("a", "b"))
    form.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    ours = ImageCollator(form.mean, form.std)([{"pixel_values": squared(image, 16, 3)}])["pixel_values"]
    assert torch.allclose(ours, theirs, atol=0.03) and theirs.shape == (1, 3, 16, 16)
    assert saved_format(tmp_path) == {"size": 16, "mean": form.mean, "std": form.std}
    assert saved_format("a/name/of/the/hub") == saved_format({"model_type": "vit"}) == {}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 20}, "image_mean": [0.5]})
    )
    assert saved_format(tmp_path) == {"size": 20, "mean": (0.5,)}


# --- augmentation ----------------------------------------------------------------------------------------------------


def naive(pixels: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """One picture, place by place: mirrored, then shifted; what comes in is black."""
    height, width, _ = pixels.shape
    source = pixels[:, ::-1] if flip else pixels
    out = np.zeros_like(pixels)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                out[y, x] = source[y + down, x + right]
    return out


def test_every_change_is_a_shift_of_the_picture_or_of_its_mirror_image():
    pixels = np.random.default_rng(1).integers(1, 255, (6, 5, 3), dtype=np.uint8)
    seen = set()
    known = {
        naive(pixels, down, right, flip).tobytes(): (down, right, flip)
        for down in range(-1, 2)
        for right in range(-1, 2)
        for flip in (False, True)
    }
    for changed in Augmentation(padding=1)(torch.from_numpy(np.stack([pixels] * 300))).numpy():
        seen.add(known[changed.tobytes()])
    assert len(known) == len(seen) == 18  # each of them comes, and nothing else


def test_without_mirroring_or_shifts():
    pixels = torch.randint(1, 255, (40, 4, 4, 1), dtype=torch.uint8)
    assert torch.equal(Augmentation(padding=0, flip=False)(pixels), pixels)
    mirrored = Augmentation(padding=0)(pixels)
    same = (mirrored == pixels).flatten(1).all(1)
    assert 5 < int(same.sum()) < 35 and torch.equal(mirrored[~same], pixels[~same].flip(2))


def test_augmentation_follows_the_seed():
    pixels = torch.randint(1, 255, (8, 6, 6, 3), dtype=torch.uint8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(Augmentation()(pixels))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_a_recipe_says_of_augmentation():
    own = Augmentation(padding=2, flip=False)
    assert Augmentation.parse(None, own) is own and Augmentation.parse(True, own) is own
    assert Augmentation.parse(False, own) is None and Augmentation.parse(True, None) == Augmentation()
    assert Augmentation.parse({"flip": True}, own) == Augmentation(2, True)
    assert images.IMAGE_TASKS["imagenet"].augmentation(224) == Augmentation(28)
    for wanted, message in (
        ({"fliip": True}, "augment has no 'fliip'. Nearest: flip. It has: padding, flip"),
        ({"padding": -1}, "padding of augment is a whole number of 0 or more; found -1"),
        ({"flip": "yes"}, "flip of augment is true or false; found 'yes'"),
        ({"flip": "yes", "fliip": 1}, "augment has no 'fliip'.* flip of augment is true or false; found 'yes'"),
        ("strong", "augment is true, false or a mapping of padding and flip; found 'strong'"),
    ):
        with pytest.raises(ConfigError, match=message):
            Augmentation.parse(wanted, own)


def test_training_pictures_change_and_evaluation_sees_them_as_they_are(tmp_path):
    by_class(tmp_path / "train", {"cat": 3, "dog": 3}, (16, 16))
    by_class(tmp_path / "val", {"cat": 1, "dog": 1}, (16, 16))
    data = load_images("image_folder", tmp_path)
    assert data["train"].augmentation == Augmentation(padding=2) and data["validation"].augmentation is None
    assert load_images("image_folder", tmp_path, augment=False)["train"].augmentation is None
