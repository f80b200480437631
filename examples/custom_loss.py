"""Losses of one's own, with nothing to register: a function that asks for the mask, and a module that learns.

python examples/custom_loss.py [--smoke]
"""

import argparse

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.data import embedded_sentiment, tokenize, train_tokenizer


def sentence_distance(student, teacher, mask, scale=1.0):
    """Squared distance of the mean hidden state of a sentence, one value per sentence.

    It names `mask` (batch, length), so it is given the mask and leaves padding out of the mean by itself. Averaging
    the values over the batch is left to the loss model. `scale` comes from the entry's `args`.
    """
    mask = mask.unsqueeze(-1).float()
    student, teacher = ((side * mask).sum(1) / mask.sum(1).clamp(min=1) for side in (student, teacher))
    return scale * (student - teacher).square().mean(-1)


class ThroughMLP(nn.Module):
    """Cosine distance after a learned map from the student's width to the teacher's, one value per token.

    Its parameters train with the student, and are saved beside it, never in it.
    """

    def __init__(self, student_width, teacher_width):
        super().__init__()
        self.map = nn.Sequential(
            nn.Linear(student_width, teacher_width), nn.GELU(), nn.Linear(teacher_width, teacher_width)
        )

    def forward(self, student, teacher):
        return 1 - torch.cosine_similarity(self.map(student), teacher, dim=-1)


def bert(layers, width, tokenizer):
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 2 * width}
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **sizes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    options = parser.parse_args()
    torch.manual_seed(0)

    raw = embedded_sentiment(num_train=128 if options.smoke else 4000, num_validation=64)
    tokenizer = train_tokenizer(raw["train"]["sentence"], vocab_size=500)
    train = tokenize(raw["train"], tokenizer, ["sentence"])
    teacher = bert(layers=4, width=64, tokenizer=tokenizer)
    student = bert(layers=2, width=64, tokenizer=tokenizer)
    narrow = bert(layers=2, width=32, tokenizer=tokenizer)

    function = {
        "teacher": "layer4.hidden_states",
        "student": "layer2.hidden_states",
        "loss": sentence_distance,
        "args": {"scale": 10.0},
        "name": "sentence",
    }
    module = ThroughMLP(student_width=32, teacher_width=64)
    learned = {"teacher": "layer4.hidden_states", "student": "layer2.hidden_states", "loss": module, "name": "mlp"}
    before = module.map[0].weight.detach().clone()

    for entry, model in ((function, student), (learned, narrow)):
        distiller = KnowledgeDistiller(
            teacher, model, [entry], train_dataset=train, processing_class=tokenizer, learning_rate=1e-3
        )
        epochs = [distiller.train_epoch()[entry["name"]] for _ in range(2 if options.smoke else 3)]
        distiller.close()
        print(f"{entry['name']}: {epochs[0]:.4f} -> {epochs[-1]:.4f}")
    moved = (module.map[0].weight.cpu() - before).abs().max().item()
    print(f"the module's weights moved by up to {moved:.4f}")


if __name__ == "__main__":
    main()
