"""Published methods as plain functions of teacher and student that return a `distill_config` list.

Each takes two transformers models, or their configs, and the method's own values under their names. Where a method is
meant for pre-training, labels of the task stand in the place of its language-model loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config.layer_entries import Entries, layer_entries
from ..errors import ConfigError
from .mapping import Mapped, config_of, depths, pairs_of
from .soft_targets import LOGITS, is_regression, labels_entry, soft_entry, weighted
from .stage_ends import paired_stages

_EMBEDDING = {"teacher": "embedding_layer.embedding", "student": "embedding_layer.embedding", "loss": "mse"}


def hinton(
    alpha: float = 0.5,
    temperature: float = 2.0,
    regression: bool = False,
    student_layer: int | None = None,
    teacher_layer: int | None = None,
) -> Entries:
    """Soft targets: alpha * T^2 * KL(teacher, student) + (1 - alpha) * cross-entropy with the labels.

    Args:
        alpha: weight of the soft part, in [0, 1]. At 1 no labels are needed, at 0 no teacher.
        temperature: above 0.
        regression: the model has one real output: both parts are then squared errors, and there is no temperature.
        student_layer, teacher_layer: the number n of a `layer{n}` whose softmax is compared, counted from the end
            where it is negative: -2 is the layer before the last. None: the logits.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is the weight of the soft part, in [0, 1]; found {alpha}")
    numbers = {"student": student_layer, "teacher": teacher_layer}
    sides = {side: f"layer{number}.hidden_states" for side, number in numbers.items() if number is not None}
    return weighted([soft_entry(alpha, temperature, regression) | sides, labels_entry(1 - alpha, regression)])


def layers(
    teacher: Any, student: Any, alpha: float = 0.5, temperature: float = 2.0, mapping: Mapped = "uniform"
) -> Entries:
    """`hinton`, and the embedding and every student layer from the teacher layer at the same relative depth.

    Hidden states are compared always, attention maps where both models have as many heads.

    Args:
        mapping: `uniform`, `last` or `skip`, or (teacher layer, student layer) pairs.
    """
    outputs = ["hidden_states", "attention"] if _same_heads(teacher, student) else ["hidden_states"]
    states = layer_entries(pairs_of(mapping, teacher, student), outputs)
    return [dict(_EMBEDDING), *states, *hinton(alpha, temperature, is_regression(teacher))]


def attention_transfer(
    student_layers: Sequence[int] = (),
    teacher_layers: Sequence[int] = (),
    weight: float = 1000.0,
    alpha: float = 0.5,
    temperature: float = 2.0,
    regression: bool = False,
    teacher: Any = None,
    student: Any = None,
) -> Entries:
    """`hinton`, and the places that layers look at: the activation-based attention of chosen layers.

    Args:
        student_layers, teacher_layers: paired one by one; negative numbers count from the end. With one alone they
            are the same on both sides; without both they are the ends of the stages of image models, else layers 1
            and 3.
        weight: of each pair; 1000 in the paper's code.
        alpha, temperature: as for `hinton`; 0.9 and 4 in the paper's code.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017.
    """
    if not student_layers and not teacher_layers:
        stages = paired_stages(teacher, student) if _of_images(student) else []
        teacher_layers = [one.layer for one, _ in stages] or [1, 3]
        student_layers = [one.layer for _, one in stages] or [1, 3]
    student_layers, teacher_layers = student_layers or teacher_layers, teacher_layers or student_layers
    if len(student_layers) != len(teacher_layers):
        raise ConfigError(
            f"student_layers and teacher_layers are paired one by one; found {list(student_layers)} and "
            f"{list(teacher_layers)}"
        )
    pairs = list(zip(teacher_layers, student_layers, strict=True))
    looks = layer_entries(pairs, loss="attention_transfer", weight=weight)
    return weighted([*looks, *hinton(alpha, temperature, regression)])


def data_free(
    student_layers: Sequence[int] = (),
    teacher_layers: Sequence[int] = (),
    weight: float = 250.0,
    temperature: float = 1.0,
    regression: bool = False,
) -> Entries:
    """For samples without labels, which a source makes: the soft targets, and where chosen layers look.

    Args:
        student_layers, teacher_layers: as for `attention_transfer`; with none, soft targets alone.
        weight: of each pair of layers; 250 in the paper.
        temperature: above 0; 1 in the paper.

    Source: Micaelli and Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, 2019, eq. 2 and 3.
    """
    if not student_layers and not teacher_layers:
        return hinton(1.0, temperature, regression)
    return attention_transfer(student_layers, teacher_layers, weight, 1.0, temperature, regression)


def tinybert(teacher: Any, student: Any, mapping: Mapped = "uniform") -> Entries:
    """Two stages: `intermediate` copies embedding, hidden states and attention scores; `prediction` the logits alone.

    Attention is left out where the numbers of heads differ.

    Args:
        mapping: `uniform` (the paper's), `last` or `skip`, or (teacher layer, student layer) pairs.

    Source: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2020: its task-specific
    step.
    """
    outputs = ["hidden_states", "attention_scores"] if _same_heads(teacher, student) else ["hidden_states"]
    inner = [_EMBEDDING, *layer_entries(pairs_of(mapping, teacher, student), outputs)]
    logits = {**LOGITS, "loss": "logits_mse" if is_regression(teacher) else "soft_cross_entropy"}
    return _staged(intermediate=inner, prediction=[logits])


def pkd(
    teacher: Any,
    student: Any,
    alpha: float = 0.5,
    temperature: float = 10.0,
    beta: float = 100.0,
    mapping: Mapped = "skip",
) -> Entries:
    """`hinton`, and the normalised [CLS] vectors of intermediate layers.

    Args:
        alpha: weight of the soft part; 0.2, 0.5 or 0.7 in the paper's code.
        temperature: 5, 10 or 20 in the paper's code.
        beta: weight of the vectors, as in the paper's code, whose distance is divided by their width: 10 to 1000.
        mapping: `skip` or `last`, the paper's, or `uniform`, each without the student's last layer, which the logits
            teach already; or (teacher layer, student layer) pairs.

    Source: Sun et al., Patient Knowledge Distillation for BERT Model Compression, 2019.
    """
    pairs = pairs_of(mapping, teacher, student)
    if isinstance(mapping, str):
        pairs = pairs[: max(1, depths(teacher, student)[1] - 1)]
    vectors = layer_entries(pairs, loss="pkd", args={"mean_all": True}, weight=beta / len(pairs))
    return weighted([*vectors, *hinton(alpha, temperature, is_regression(teacher))])


def distilbert(
    teacher: Any,
    student: Any,
    temperature: float = 2.0,
    alpha_ce: float = 5.0,
    alpha_labels: float = 2.0,
    alpha_cos: float = 1.0,
) -> Entries:
    """Soft targets, labels, and the directions of the last layer's hidden states.

    Args:
        alpha_ce, alpha_labels, alpha_cos: their weights; alpha_labels was that of the language-model loss.

    Source: Sanh et al., DistilBERT, a distilled version of BERT, 2019: the values of its released
    command.
    """
    regression = is_regression(teacher)
    cosine = layer_entries([(-1, -1)], loss="hidden_cosine", weight=alpha_cos)
    return weighted([soft_entry(alpha_ce, temperature, regression), labels_entry(alpha_labels, regression), *cosine])


def minilm(teacher: Any, student: Any, teacher_layer: int = -1) -> Entries:
    """Two stages: `relations` copies attention and the relations of the values of one layer, `labels` learns the task.

    Both models have as many attention heads; widths may differ.

    Args:
        teacher_layer: whose self-attention is copied into the student's last layer; the last in the paper.

    Source: Wang et al., MiniLM: Deep Self-Attention Distillation, 2020.
    """
    if not _same_heads(teacher, student):
        raise ConfigError("minilm needs as many attention heads in both models; minilm_v2 does not")
    pair = [(teacher_layer, -1)]
    relations = layer_entries(pair, ["attention"], loss="attention_kl")
    relations += layer_entries(pair, ["value"], loss="value_relation")
    return _staged(relations=relations, labels=[labels_entry(1.0, is_regression(teacher))])


def minilm_v2(teacher: Any, student: Any, teacher_layer: int = -1, relation_heads: int | None = None) -> Entries:
    """Two stages: `relations` copies the relations of queries, keys and values of one layer, `labels` learns the task.

    Args:
        teacher_layer: whose self-attention is copied into the student's last layer: the last of a base model, an
            upper-middle one of a large model.
        relation_heads: heads into which both are cut: 48 (base) or 64 (large) in the paper, each width divided by
            them. None: 48 where it fits both, else what `qkv_relation` takes.

    Source: Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, 2021.
    """
    widths = [getattr(config_of(model), "hidden_size", None) for model in (teacher, student)]
    if relation_heads is None and all(width and width % 48 == 0 for width in widths):
        relation_heads = 48
    args = {} if relation_heads is None else {"relation_heads": relation_heads}
    relations = layer_entries([(teacher_layer, -1)], ["{query,key,value}"], loss="qkv_relation", args=args)
    return _staged(relations=relations, labels=[labels_entry(1.0, is_regression(teacher))])


def mobilebert(
    teacher: Any, student: Any, alpha: float = 0.5, temperature: float = 1.0, progressive: bool = False
) -> Entries:
    """Two stages: `layers` copies feature maps and attention layer by layer, `prediction` is `hinton`.

    Attention is left out where the numbers of heads differ; where widths differ, which the paper's do not, they are
    projected.

    Args:
        progressive: one stage for each layer, `layer1` first, instead of all at once. The layers below go on training
            with it; the paper freezes them or slows them down.

    Source: Sun et al., MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices, 2020.
    """
    pairs = pairs_of("uniform", teacher, student)
    stages = {f"layer{i}": [pair] for i, pair in enumerate(pairs, start=1)} if progressive else {"layers": pairs}
    entries: dict[str, Entries] = {}
    for stage, some in stages.items():
        entries[stage] = layer_entries(some, loss="mobilebert_feature")
        if _same_heads(teacher, student):
            entries[stage] += layer_entries(some, ["attention"], loss="mobilebert_attention")
    return _staged(**entries, prediction=hinton(alpha, temperature, is_regression(teacher)))


def rkd(
    teacher: Any, student: Any, distance: float = 25.0, angle: float = 50.0, alpha: float = 0.0, pooling: str = "first"
) -> Entries:
    """Distances and angles between samples, by their [CLS] vectors in the last layer; and the labels.

    Args:
        distance, angle: weights of the two; 25 and 50 in the paper.
        alpha: weight of soft targets at temperature 2, taken from that of the labels.
        pooling: `mean` of the tokens, for models without [CLS].

    Source: Park et al., Relational Knowledge Distillation, 2019.
    """
    entries = [
        *layer_entries([(-1, -1)], loss="rkd_distance", args={"pooling": pooling}, weight=distance),
        *layer_entries([(-1, -1)], loss="rkd_angle", args={"pooling": pooling}, weight=angle),
    ]
    return weighted([*entries, *hinton(alpha, 2.0, is_regression(teacher))])


def crd(
    teacher: Any, student: Any, beta: float = 0.8, negatives: int = 16384, alpha: float = 0.0, pooling: str = "first"
) -> Entries:
    """A student's sample is told from others by its teacher's representation, and the other way round; and the labels.

    For a run with a `train_dataset`: the loss remembers each of its rows.

    Args:
        beta: weight of the contrastive part; 0.8 in the paper's experiments.
        negatives: samples it is told from, at most those there are; 16384 in the paper's experiments.
        alpha: weight of soft targets at temperature 2, taken from that of the labels.
        pooling: `first` for [CLS], or `mean` of the tokens; of maps it is the mean of their places.

    Source: Tian, Krishnan and Isola, Contrastive Representation Distillation, 2020.
    """
    if _of_images(student) and any(stage.size for stage in paired_stages(teacher, student)[-1]):
        pooling = "mean"
    args = {"negatives": negatives, "pooling": pooling}
    contrast = layer_entries([(-1, -1)], loss="crd", args=args, weight=beta)
    return weighted([*contrast, *hinton(alpha, 2.0, is_regression(teacher))])


def byot(
    teacher: Any, student: Any, alpha: float = 0.3, temperature: float = 3.0, feature_weight: float = 0.03
) -> Entries:
    """Be your own teacher: each inner layer has an exit that learns from the labels and from the model's own end.

    The exits are trained beside the student and left out of it when it is saved. No teacher is needed.

    Args:
        alpha: weight of the soft targets of each exit, its labels having 1 - alpha.
        feature_weight: of the mean squared difference of a layer's hidden states from the last layer's.

    Source: Zhang et al., Be Your Own Teacher, 2019. The defaults are mmrazor's, whose third weight belongs to the
    distance of pooled features, not squared; an exit here is a linear map, there convolutions come before it.
    """
    config = config_of(student)
    stages = getattr(config, "depths", ())  # of a ResNet: maps that shrink from one to the next
    depth = len(stages) or getattr(config, "num_hidden_layers", None)
    if depth is None:
        raise ConfigError(f"byot needs a student that says how many layers it has; {type(config).__name__} does not")
    classes = getattr(config, "num_labels", 2)
    entries = [labels_entry(1.0, classes == 1)]
    for n in range(1, depth):
        inner = {"student": f"layer{n}.hidden_states", "teacher_name": "self"}
        head = {"student": inner["student"], "projection": {"type": "exit", "shared": f"exit{n}", "width": classes}}
        last = {"teacher": "layer-1.hidden_states", "loss": "hidden_mse", "weight": feature_weight}
        entries += [
            labels_entry(1 - alpha, classes == 1) | head,
            soft_entry(alpha, temperature, classes == 1) | inner | head,
            last | inner | ({"projection": "resize"} if stages else {}),
        ]
    return weighted(entries)


def born_again(teacher: Any, student: Any) -> Entries:
    """The labels and, with the same weight, the soft targets of a teacher of the same size: the generation before.

    Source: Furlanello et al., Born Again Neural Networks, 2018.
    """
    regression = is_regression(teacher)
    return [soft_entry(1.0, 1.0, regression), labels_entry(1.0, regression)]


def deep_mutual_learning(teacher: Any = None, student: Any = None) -> Entries:
    """Students that learn from the labels and from each other: for a run with a `peer_model`. No teacher is needed.

    Source: Zhang et al., Deep Mutual Learning, 2018, where the students take turns; here they step together.
    """
    regression = is_regression(student)
    return [soft_entry(1.0, 1.0, regression) | {"teacher_name": "peer"}, labels_entry(1.0, regression)]


def meal_v2(teacher_names: Sequence[str], *, temperature: float = 1.0, adversarial: float = 1.0) -> Entries:
    """The mean probability of several teachers, and a discriminator that the student learns to deceive. No labels.

    Args:
        teacher_names: names of the teachers, as in `teacher_model={"a": ..., "b": ...}`.
        adversarial: weight of the discriminator's part.

    Source: Shen and Savvides, MEAL V2, 2020. In its code the student helps the discriminator; here it is adversarial.
    """
    logits: dict[str, Any] = {**LOGITS, "teacher_name": list(teacher_names)}
    mean = logits | {"loss": "ensemble_cross_entropy", "args": {"temperature": temperature}}
    judged = logits | {"loss": "adversarial", "learning_rate": 1e-4, "weight": adversarial}
    return weighted([mean, judged])


def _of_images(model: Any) -> bool:
    """Whether a model, or that of a config, is one of images."""
    return hasattr(config_of(model), "num_channels")


def _same_heads(teacher: Any, student: Any) -> bool:
    heads = [getattr(config_of(model), "num_attention_heads", None) for model in (teacher, student)]
    return heads[0] is not None and heads[0] == heads[1]


def _staged(**stages: Entries) -> Entries:
    return [{**entry, "stage": stage} for stage, entries in stages.items() for entry in entries]
