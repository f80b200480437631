"""Small generated pictures whose answer is known: rectangles, discs and diamonds of any colour on noise.

detection.py and segmentation.py learn from them.
"""

import numpy as np
import torch
from accelerate.utils import send_to_device

from knowledge_distillation import DataError

SHAPES = ("rectangle", "disc", "diamond")  # class 0, 1, 2; of a segmentation 1, 2, 3, with 0 for the background


def detection_scenes(number, seed=0, size=48, most=3, noise=0.1):
    """Pictures with their objects, as transformers' detectors take them.

    Args:
        number: of pictures, 1 or more.
        seed: of everything in them.
        size: height and width in pixels, 16 or more.
        most: objects in a picture at most; each has 1 or more.
        noise: standard deviation of each pixel; colours are 0.5 to 1 away from the background's.

    Returns:
        Rows of `pixel_values` (3, size, size) and `labels`: `class_labels` (objects,), and `boxes` (objects, 4),
        centre x, centre y, width and height as parts of the picture.
    """
    rows = []
    for picture, _, objects in scenes(number, seed, size, most, noise):
        classes, boxes = (torch.tensor([one[i] for one in objects]) for i in (0, 1))
        rows.append({"pixel_values": picture, "labels": {"class_labels": classes, "boxes": boxes}})
    return rows


def segmentation_scenes(number, seed=0, size=48, most=3, noise=0.1):
    """Pictures with the class of each pixel; arguments as for `detection_scenes`.

    Returns:
        Rows of `pixel_values` (3, size, size) and `labels` (size, size): 0 is background.
    """
    return [{"pixel_values": p, "labels": classes} for p, classes, _ in scenes(number, seed, size, most, noise)]


def collate_detection(rows):
    """A batch of `detection_scenes`: pictures of one size, and a list of labels."""
    pictures = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pictures, "labels": [row["labels"] for row in rows]}


def outputs(model, dataloader, accelerator):
    """Each batch, and what a model says of its pictures; for an evaluator."""
    for batch in dataloader:
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            yield batch, model(pixel_values=batch["pixel_values"])


def scenes(number, seed, size, most, noise):
    """Picture, class of each pixel, and (class, box) of each object."""
    if number < 1 or size < 16 or most < 1 or noise < 0:
        raise DataError(
            "scenes need number and most of 1 or more, size of 16 or more and noise of 0 or more; found "
            f"number={number}, most={most}, size={size}, noise={noise}"
        )
    random = np.random.default_rng(seed)
    for _ in range(number):
        background = random.uniform(-0.5, 0.5, 3)
        picture = np.empty((3, size, size))
        picture[:] = background[:, None, None]
        classes = np.zeros((size, size), np.int64)
        objects = []
        for _ in range(random.integers(1, most + 1)):
            shape = int(random.integers(len(SHAPES)))
            centre, half = random.uniform(0.25, 0.75, 2), random.uniform(0.12, 0.25, 2)
            inside = covered(shape, size, centre, half)
            if classes[inside].any():
                continue  # objects do not hide each other, so that every answer can be seen
            picture[:, inside] = (background + random.uniform(0.5, 1.0, 3) * random.choice([-1, 1], 3))[:, None]
            classes[inside] = shape + 1
            objects.append((shape, [*centre.tolist(), *(2 * half).tolist()]))
        picture += random.normal(0, noise, picture.shape)
        yield torch.tensor(picture, dtype=torch.float32), torch.tensor(classes), objects


def covered(shape, size, centre, half):
    """Which pixels (y, x) a shape covers."""
    at = (np.arange(size) + 0.5) / size
    x, y = np.abs(at[None, :] - centre[0]) / half[0], np.abs(at[:, None] - centre[1]) / half[1]
    return [np.maximum(x, y), np.sqrt(x**2 + y**2), x + y][shape] <= 1
