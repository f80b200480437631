"""BERT with 12 layers into BERT with 3, by a list of seven entries: embedding, hidden states and attention maps.

The models start from random weights and read random tokens, so that nothing is downloaded; BertConfig() without
sizes is BERT-base. With --adaptor the same list reads an output adaptor of one's own instead of the ready-made names.

    python examples/bert12_to_bert3.py [--adaptor] [--smoke]
"""

import argparse
import logging

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel

from knowledge_distillation import (
    Callback,
    KnowledgeDistiller,
    MultiLayerBasedDistillationEvaluator,
    MultiLayerBasedDistillationLoss,
)

PAIRS = {4: 1, 8: 2, 12: 3}  # teacher layer -> student layer


def entry(teacher_layer, student_layer, output):
    """What to compare, by which loss, with what weight."""
    return {
        "type": "ts_distill",
        "teacher_layer_name": teacher_layer,
        "teacher_layer_output_name": output,
        "student_layer_name": student_layer,
        "student_layer_output_name": output,
        "loss": {"loss_function": "mse", "args": {}},
        "weight": 1.0,
    }


distill_config = [entry("embedding_layer", "embedding_layer", "embedding")]
for teacher_layer, student_layer in PAIRS.items():
    for output in ("hidden_states", "attention"):
        distill_config.append(entry(f"bert_layer{teacher_layer}", f"bert_layer{student_layer}", output))


def data_adaptor(device, batch):
    """A batch of the loader -> the inputs of the teacher and of the student, here the same."""
    input_ids, attention_mask, token_type_ids = (tensor.to(device) for tensor in batch)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return inputs, inputs


def output_adaptor(model_output):
    """A model's output -> {layer: {output: tensor}}. Four values, because the config below asks for all four."""
    last_hidden_state, pooler_output, hidden_states, attentions = model_output
    features = {"embedding_layer": {"embedding": hidden_states[0]}}
    for number, attention in enumerate(attentions, start=1):
        features[f"bert_layer{number}"] = {"hidden_states": hidden_states[number], "attention": attention}
    return features


class Losses(Callback):
    """Keeps the loss of every log line."""

    def __init__(self):
        self.values = []

    def on_log(self, run, values):
        self.values.append(values["loss"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adaptor", action="store_true", help="an output adaptor and an optimizer of one's own")
    parser.add_argument("--smoke", action="store_true", help="a few small steps, to see that all works")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)

    width, rows, length, batch_size = (64, 96, 16, 8) if options.smoke else (256, 1600, 32, 16)
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 4 * width, "vocab_size": 1000}
    if options.adaptor:
        sizes |= {"output_hidden_states": True, "output_attentions": True}
    teacher_model = BertModel(BertConfig(num_hidden_layers=12, **sizes))
    student_model = BertModel(BertConfig(num_hidden_layers=3, **sizes))

    input_ids = torch.randint(100, 1000, (rows, length))
    train_data = TensorDataset(input_ids, torch.ones_like(input_ids), torch.zeros_like(input_ids))
    losses = Losses()
    logging_steps = 4 if options.smoke else 20
    run = {
        "teacher_model": teacher_model,
        "student_model": student_model,
        "train_dataloader": DataLoader(train_data, batch_size=batch_size, shuffle=True),
        "train_data_adaptor": data_adaptor,
        "callbacks": [losses],
        "logging_steps": logging_steps,
        "num_epoch": 1,
    }
    if options.adaptor:
        distiller = KnowledgeDistiller(
            loss_model=MultiLayerBasedDistillationLoss(distill_config, output_adaptor, output_adaptor),
            optimizer=torch.optim.Adam(student_model.parameters(), lr=1e-3),
            evaluator=MultiLayerBasedDistillationEvaluator(save_dir=None, print_loss_step=logging_steps),
            **run,
        )
    else:
        distiller = KnowledgeDistiller(distill_config=distill_config, learning_rate=1e-3, **run)
    print(distiller.plan())
    distiller.distillate()
    print(f"loss {losses.values[0]:.4f} -> {losses.values[-1]:.4f}")


if __name__ == "__main__":
    main()
