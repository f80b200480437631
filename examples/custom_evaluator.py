"""Two ways to say when a student is good: a callable that scores it, and an object that is asked after every step.

python examples/custom_evaluator.py [--smoke]
"""

import argparse

import torch
from transformers import BertConfig, BertForSequenceClassification

from knowledge_distillation import KnowledgeDistiller
from knowledge_distillation.data import embedded_sentiment, tokenize, train_tokenizer
from knowledge_distillation.presets import hinton


class MeanRank:
    """The callable form: the runner calls it after each epoch and keeps the student that scores best.

    The mean place of the right class in the student's order of classes; 1 is perfect, so smaller is better.
    """

    primary_metric = "mean_rank"
    greater_is_better = False

    def __call__(self, student, teacher, dataloader, accelerator):
        ranks = []
        for batch in dataloader:
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            right = logits.gather(1, batch["labels"][:, None])
            ranks.append((logits > right).sum(1) + 1)
        return {"mean_rank": torch.cat(ranks).double().mean().item()}


class LowestLoss:
    """The long-known form: asked after every step, it decides by itself when to look, what to keep and where."""

    def __init__(self, every):
        self.every, self.lowest, self.kept, self.recent = every, float("inf"), None, []

    def evaluate(self, teacher_model, student_model, dev_data, dev_data_adaptor, epoch, step, loss_value):
        self.recent.append(loss_value)  # a detached tensor: reading it would make the device wait
        if step % self.every == 0:
            loss = torch.stack(self.recent).mean().item()
            self.recent.clear()
            print(f"epoch {epoch} step {step} loss {loss:.4f}")
            if loss < self.lowest:
                self.lowest = loss
                self.kept = {name: tensor.detach().clone() for name, tensor in student_model.state_dict().items()}


def small_bert(layers, tokenizer):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **sizes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that all works")
    options = parser.parse_args()
    torch.manual_seed(0)

    raw = embedded_sentiment(num_train=64, num_validation=32) if options.smoke else embedded_sentiment(4000, 500)
    tokenizer = train_tokenizer(raw["train"]["sentence"], vocab_size=500)
    train, dev = (tokenize(raw[split], tokenizer, ["sentence"]) for split in ("train", "validation"))
    data = {"train_dataset": train, "eval_dataset": dev, "processing_class": tokenizer}
    settings = {"num_train_epochs": 1 if options.smoke else 3, "learning_rate": 1e-3, "disable_tqdm": True}

    teacher = small_bert(2, tokenizer)  # a config of hard entries alone fine-tunes: the same loop, no teacher
    labels = [{"student": "output.logits", "loss": "cross_entropy"}]
    scores = KnowledgeDistiller(None, teacher, labels, evaluator=MeanRank(), **data, **settings).train()
    print(f"teacher {scores}")

    student = small_bert(1, tokenizer)
    scores = KnowledgeDistiller(teacher, student, hinton(), evaluator=MeanRank(), **data, **settings).train()
    print(f"callable form: {scores}")

    keep = LowestLoss(every=1 if options.smoke else 50)
    student = small_bert(1, tokenizer)
    KnowledgeDistiller(teacher, student, hinton(), evaluator=keep, **data, **settings).train()
    student.load_state_dict(keep.kept)
    print(f"object form: kept the student with loss {keep.lowest:.4f}")


if __name__ == "__main__":
    main()
