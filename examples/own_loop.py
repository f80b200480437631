"""An epoch loop of one's own on plain PyTorch models: train, validate, log, save, print, load, go on for longer.

python examples/own_loop.py [--smoke]                 # needs scikit-learn, for its digits
"""

import argparse
import tempfile
from importlib.util import find_spec

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.evaluation.report import epoch_line
from knowledge_distillation.presets import attention_transfer, hinton

TRACKERS = ["tensorboard"] if find_spec("tensorboard") else []


def mlp(width):
    """Layers 1 to 3 are its linear maps; layer -2 is the second, before the last."""
    linear = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Flatten(), *linear)


def cnn(width):
    """Layers 1 to 3 are the convolutions, layer 4, which is layer -1 as well, the linear map."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


def loaders(smoke):
    """Batches are pairs of a picture and its digit; the model takes the picture."""
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target))
    train, dev = torch.utils.data.random_split(data, [1297, 500], torch.Generator().manual_seed(0))
    if smoke:
        train, dev = (torch.utils.data.Subset(part, range(64)) for part in (train, dev))
    return {"train_dataloader": DataLoader(train, 32, shuffle=True), "dev_dataloader": DataLoader(dev, 100)}


def run(distiller, epochs, start=0):
    for epoch in range(start, epochs):
        losses = distiller.train_epoch()
        scores = distiller.evaluate()
        distiller.log({f"eval_{name}": value for name, value in scores.items()})
        distiller.save()
        print(epoch_line(epoch + 1, epochs, {"loss": losses["loss"], **scores}))
    distiller.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    options = parser.parse_args()
    torch.manual_seed(0)
    epochs = 1 if options.smoke else 8
    settings = {**loaders(options.smoke), "learning_rate": 3e-3, "report_to": TRACKERS}

    for name, model, entries in (
        ("hinton at the layers before the last", mlp, hinton(0.5, 4.0, student_layer=-2, teacher_layer=-2)),
        ("attention transfer at layers 1 and 3", cnn, attention_transfer([1, 3], alpha=0.5, temperature=4.0)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: the teacher")
            teacher = model(32)
            own = {**settings, "output_dir": f"{folder}/teacher"}
            run(KnowledgeDistiller(None, teacher, hinton(0), **own, num_train_epochs=epochs), epochs)

            print(f"{name}: the student")
            own = {**settings, "output_dir": f"{folder}/student"}
            run(KnowledgeDistiller(teacher, model(8), entries, **own, num_train_epochs=epochs), epochs)

            print(f"{name}: the student, for longer")
            longer = KnowledgeDistiller(teacher, model(8), entries, **own, num_train_epochs=epochs + 2)
            before = longer.output_dir
            done = longer.load_state(student=before, projections=before, optimizer=before, progress=before)
            run(longer, epochs + 2, start=done)


if __name__ == "__main__":
    main()
