"""Several teachers, the student as its own teacher, and students that teach each other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import HARD, SOFT, VOCABULARY, batches, bert, distiller, same, weights
from tolerance import near
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from watching import KillAt, Killed

from knowledge_distillation import Callback, ConfigError, parse_config

LOGITS = {"teacher": "output.logits", "student": "output.logits", "loss": "kl_divergence"}
PEER = {**LOGITS, "teacher_name": "peer", "name": "mutual"}
MUTUAL = [{**HARD[0], "name": "hard"}, PEER]


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student), times the temperature squared, mean over samples."""
    log_p, log_q = (torch.log_softmax(z / temperature, -1) for z in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def sgd(*models: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=lr)


def trained(config: Any, teacher: Any = None, student: Any = None, **options: Any) -> Any:
    """A run without clipping, by SGD unless told otherwise; the distiller after it."""
    peers = options.get("peer_model") or {}
    students = [student, *(peers.values() if isinstance(peers, dict) else [peers])]
    options = {"optimizer": sgd(*students), "max_grad_norm": 0, **options}
    run = distiller(config, teacher, student, **options)
    run.losses = run.train()
    return run


def close(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs) < tolerance


# --- several teachers --------------------------------------------------------------------------------------------


def test_two_teachers_are_the_weighted_sum_of_their_terms():
    first, second, student = bert(2, seed=1), bert(3, width=8, seed=2), bert(1, seed=3)
    config = [
        {**LOGITS, "teacher_name": "first", "weight": 0.25, "name": "one"},
        {**LOGITS, "teacher_name": "second", "weight": 2, "args": {"temperature": 3}, "name": "two"},
    ]
    batch = batches(1)[0]
    twin = copy.deepcopy(student)
    with torch.no_grad():
        targets = [logits(teacher.eval(), batch) for teacher in (first, second)]
    one, two = kl(logits(twin, batch), targets[0]), kl(logits(twin, batch), targets[1], 3)
    (0.25 * one + 2 * two).backward()
    optimizer = sgd(twin)
    optimizer.step()
    before = weights(first), weights(second)
    run = trained(config, {"first": first, "second": second}, student, train_dataloader=[batch])
    assert run.losses["one"] == near(one.item())
    assert run.losses["two"] == near(two.item())
    assert run.losses["loss"] == near(0.25 * one.item() + 2 * two.item())
    assert close(student, twin)
    assert same(before[0], weights(first)) and same(before[1], weights(second))


def test_one_entry_may_ask_several_teachers_at_once():
    first, second, student = bert(2, seed=1), bert(2, seed=2), bert(1, seed=3)

    def mean_of_teachers(student, teachers):
        assert len(teachers) == 2
        return (student[0] - torch.stack(teachers).mean(0)).square().mean(-1)

    config = [{**LOGITS, "loss": mean_of_teachers, "teacher_name": ["first", "second"], "name": "mean"}]
    batch = batches(1)[0]
    with torch.no_grad():
        target = (logits(first.eval(), batch) + logits(second.eval(), batch)) / 2
        by_hand = F.mse_loss(logits(student, batch), target).item()
    run = trained(config, {"first": first, "second": second}, student, train_dataloader=[batch])
    assert run.losses["mean"] == near(by_hand)


def test_each_teacher_gets_what_its_own_forward_takes_and_is_named_in_the_plan():
    teachers = {"first": bert(4, seed=1), "second": bert(3, seed=2)}
    config = [
        {**LOGITS, "teacher_name": "first"},
        {
            "teacher": "layer2.hidden_states",
            "teacher_name": "second",
            "student": "layer1.hidden_states",
            "loss": "mse",
        },
    ]
    run = distiller(config, teachers, bert(2))
    plan = str(run.plan())
    run.close()
    assert "first:output.logits" in plan and "second:layer2.hidden_states" in plan
    assert "teacher first: BertForSequenceClassification" in plan
    assert "teacher second: BertForSequenceClassification" in plan and "runs 2 of 3 layers" in plan


def test_a_teacher_that_no_entry_asks_never_runs():
    idle = bert(2, seed=2)
    calls = []
    idle.bert.forward = lambda *args, **kwargs: calls.append(1)
    trained([{**LOGITS, "teacher_name": "first"}], {"first": bert(2), "idle": idle}, bert(1, seed=3))
    assert not calls


def test_output_adaptors_serve_every_teacher_by_name():
    def named(output):
        return {"head": {"logits": output.logits}}

    head = {"teacher": "head.logits", "student": "head.logits", "loss": "kl_divergence"}
    config = [{**head, "teacher_name": name, "name": name} for name in ("first", "self")]
    options = {"teacher_output_adaptor": named, "student_output_adaptor": named}
    run = trained(config, {"first": bert(2, seed=1)}, bert(1, seed=3), **options)
    assert run.losses["first"] > 0 and run.losses["self"] == pytest.approx(0, abs=1e-6)


# --- the student as its own teacher ------------------------------------------------------------------------------


def test_the_student_teaches_its_own_layers_and_is_not_pulled_towards_them():
    student = bert(2, seed=3)
    config = [
        {"teacher": "layer2.hidden_states", "teacher_name": "self", "student": "layer1.hidden_states", "loss": "mse"},
        {**HARD[0], "weight": 0.5},
    ]
    batch, twin = batches(1)[0], copy.deepcopy(student)
    output = twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    apart = (output.hidden_states[1] - output.hidden_states[2].detach()).square().mean(-1)[mask].mean()
    (apart + 0.5 * F.cross_entropy(output.logits, batch["labels"])).backward()
    sgd(twin).step()
    trained(config, None, student, train_dataloader=[batch])
    assert close(student, twin)


def test_be_your_own_teacher():
    """Exits on the inner layers learn from the labels, from the last exit, and one layer from the last layer."""
    exit_of = {"type": "exit", "hidden_size": 6}
    config = [{**HARD[0], "name": "last"}]
    for n in (1, 2):
        shared = {"projection": {**exit_of, "shared": f"exit{n}"}, "student": f"layer{n}.hidden_states"}
        config += [
            {
                **shared,
                "projection": {**shared["projection"], "width": 2},
                "loss": "cross_entropy",
                "name": f"hard{n}",
            },
            {**LOGITS, **shared, "teacher_name": "self", "args": {"temperature": 3}, "name": f"soft{n}"},
        ]
    student, batch = bert(3, seed=3), batches(1)[0]
    run = distiller(config, None, student, train_dataloader=[batch], optimizer=sgd(student), max_grad_norm=0)
    run.plan()
    assert sorted(run.loss_model.projections) == ["exit1", "exit2"]
    twin, exits = copy.deepcopy(student), copy.deepcopy(run.loss_model.projections)
    output = twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    loss = F.cross_entropy(output.logits, batch["labels"])
    for n in (1, 2):
        scores = exits[f"exit{n}"].head(output.hidden_states[n][:, 0])
        loss = loss + F.cross_entropy(scores, batch["labels"]) + kl(scores, output.logits.detach(), 3)
    loss.backward()
    sgd(twin, exits).step()
    assert run.train()["loss"] == near(loss.item())
    assert close(student, twin) and close(run.loss_model.projections, exits)


# --- students that teach each other ------------------------------------------------------------------------------


def mutual_learning(models: list[nn.Module], data: list[dict[str, Tensor]]) -> list[float]:
    """Deep mutual learning in a plain loop; the loss of each step, summed over the models."""
    optimizer, losses = sgd(*models), []
    for batch in data:
        scores = [logits(model, batch) for model in models]
        loss = torch.zeros(())
        for i, mine in enumerate(scores):
            others = [kl(mine, other.detach()) for j, other in enumerate(scores) if j != i]
            loss = loss + F.cross_entropy(mine, batch["labels"]) + sum(others) / len(others)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_two_peers_are_deep_mutual_learning():
    student, peer = bert(2, seed=3), bert(1, width=8, seed=4)
    twins = [copy.deepcopy(student), copy.deepcopy(peer)]
    data = batches(3)
    by_hand = mutual_learning(twins, data)
    logged: list[float] = []

    class Log(Callback):
        def on_log(self, distiller, values):
            logged.append(values["loss"])

    run = trained(MUTUAL, None, student, peer_model=peer, train_dataloader=data, callbacks=[Log()])
    assert close(student, twins[0]) and close(peer, twins[1])
    assert not close(student, bert(2, seed=3), 1e-3) and not close(peer, bert(1, width=8, seed=4), 1e-3)
    assert logged == near(by_hand)
    assert {"hard", "hard@peer", "mutual", "mutual@peer"} <= set(run.losses)


def test_three_peers_share_out_the_weight():
    students = [bert(1, seed=3), bert(1, seed=4), bert(2, width=8, seed=5)]
    twins = copy.deepcopy(students)
    data = batches(3)
    mutual_learning(twins, data)
    peers = {"b": students[1], "c": students[2]}
    run = trained(MUTUAL, None, students[0], peer_model=peers, train_dataloader=data)
    assert all(close(one, twin) for one, twin in zip(students, twins, strict=True))
    entries = {entry.name: (str(entry.teacher[0]), entry.weight) for entry in run.loss_model.config.entries[3:]}
    assert entries == {
        "mutual@self@b": ("b:output.logits", 0.5),
        "mutual@self@c": ("c:output.logits", 0.5),
        "mutual@b@self": ("self:output.logits", 0.5),
        "mutual@b@c": ("c:output.logits", 0.5),
        "mutual@c@self": ("self:output.logits", 0.5),
        "mutual@c@b": ("b:output.logits", 0.5),
    }


def test_names_in_a_cohort_are_unique():
    config = parse_config(MUTUAL).among(["a", "b"])
    names = [entry.name for entry in config.entries]
    assert len(names) == len(set(names)) == 9


def test_each_peer_has_a_projection_of_its_own_and_shared_ones_stay_within_a_student():
    shared = {"type": "linear", "shared": "map"}
    config = [
        {"teacher": "layer1.hidden_states", "student": "layer1.hidden_states", "loss": "mse", "name": "own"},
        *(
            {"teacher": f"layer{n}.hidden_states", "student": "layer1.hidden_states", "loss": "mse"}
            | {"projection": shared, "name": f"shared{n}"}
            for n in (1, 2)
        ),
    ]
    run = distiller(config, bert(2, width=24), bert(1), peer_model=bert(1, seed=4))
    run.plan()
    projections = run.loss_model.projections
    run.close()
    assert sorted(projections) == ["map", "map@peer", "own", "own@peer"]
    assert projections["map"] is not projections["map@peer"]


def test_a_frozen_teacher_beside_peers_teaches_them_all():
    student, peer, teacher = bert(1, seed=3), bert(1, seed=4), bert(2, seed=1)
    twins, batch = [copy.deepcopy(student), copy.deepcopy(peer)], batches(1)[0]
    with torch.no_grad():
        target = logits(teacher.eval(), batch)
    sum(kl(logits(twin, batch), target) for twin in twins).backward()
    sgd(*twins).step()
    trained(SOFT, teacher, student, peer_model=peer, train_dataloader=[batch])
    assert close(student, twins[0]) and close(peer, twins[1])


def test_accumulation_is_exact_with_peers():
    whole, parts = [[bert(1, seed=3), bert(1, seed=4)] for _ in range(2)]
    data = batches(4, size=2)
    rows: dict[str, Tensor] = {}
    longest = max(batch["input_ids"].shape[1] for batch in data)
    for key in data[0]:
        wide = key != "labels"
        rows[key] = torch.cat([F.pad(b[key], (0, longest - b[key].shape[1])) if wide else b[key] for b in data])
    trained(MUTUAL, None, whole[0], peer_model=whole[1], train_dataloader=[rows])
    trained(MUTUAL, None, parts[0], peer_model=parts[1], train_dataloader=data, gradient_accumulation_steps=4)
    assert close(whole[0], parts[0]) and close(whole[1], parts[1])


def adamw(folder: Path | None, **options: Any) -> Any:
    """A run of six steps with dropout, by AdamW; student and peer are as they were made each time."""
    students = bert(1, seed=3, dropout=0.1), bert(1, width=8, seed=4, dropout=0.1)
    return distiller(
        MUTUAL,
        None,
        students[0],
        peer_model=students[1],
        num_train_epochs=2,
        output_dir=folder,
        save_steps=2,
        **options,
    )


def test_peers_are_saved_beside_the_student_and_resumed_exactly(tmp_path):
    whole = adamw(tmp_path / "whole")
    whole.train()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole" / "peers" / "peer")
    assert same(weights(loaded), weights(whole.students["peer"]))
    with pytest.raises(Killed):
        adamw(tmp_path / "killed", callbacks=[KillAt(5)]).train()
    assert not (tmp_path / "killed" / "peers").exists()
    resumed = adamw(tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    for name in ("", "peer"):
        assert same(weights(whole.students[name]), weights(resumed.students[name])), name
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "killed")]
    assert histories[0] == histories[1]
    assert "peer" in json.loads((tmp_path / "whole" / "run.json").read_text())["models"].popitem()[0]


def test_save_writes_the_peers_too_and_overwriting_removes_those_of_before(tmp_path):
    run = adamw(tmp_path / "run")
    run.train_epoch()
    run.save()
    assert (tmp_path / "run" / "peers" / "peer" / "model.safetensors").exists()
    run.close()
    distiller(SOFT, output_dir=tmp_path / "run", overwrite_output_dir=True).train()
    assert not (tmp_path / "run" / "peers").exists()


# --- what does not fit -------------------------------------------------------------------------------------------


def wrong(config: Any, teacher: Any = None, student: Any = None, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        distiller(config, teacher, student or bert(1), **options).plan()
    return str(caught.value)


def test_teachers_that_are_not_there():
    two = {"first": bert(2), "second": bert(2)}
    assert "[0] there are several teachers: say which by teacher_name, of first, second" in wrong(SOFT, two)
    named = [{**SOFT[0], "teacher_name": "secnd"}]
    assert "[0] teacher_name 'secnd' is no teacher here. Nearest: second. Known: first, second, self" in wrong(
        named, two
    )
    assert "[0] teacher_name peer needs a peer_model" in wrong([PEER], bert(2))
    assert "[0] compares with a teacher, and there is no teacher_model" in wrong(SOFT, None)
    many = [{**LOGITS, "teacher_name": ["first", "second"]}]
    assert "[0] loss kl_divergence compares one feature with one: it takes no list of features" in wrong(many, two)


def test_a_layer_that_one_of_several_teachers_lacks():
    far = [{**SOFT[0], "teacher_name": "first", "teacher": "layer9.hidden_states", "loss": "mse"}]
    said = wrong(far, {"first": bert(2), "second": bert(4)})
    assert "[0] first:layer9.hidden_states: the teacher first has 2 layers. Nearest: layer2.hidden_states." in said
    said = wrong([{**far[0], "teacher_name": "self"}])
    assert "[0] self:layer9.hidden_states: the student has 1 layer. Nearest: layer1.hidden_states." in said
    said = wrong([{**far[0], "teacher_name": "peer"}], peer_model=bert(2))
    assert "[0] peer:layer9.hidden_states: the peer has 2 layers. Nearest: layer2.hidden_states." in said


@pytest.mark.parametrize("name", ["", "self", "peer", "a.b", "a/b", "keys", 1])
def test_names_that_a_teacher_may_not_have(name):
    assert "teacher_model names models by" in wrong(SOFT, {name: bert(2)})


@pytest.mark.parametrize("name", ["", "self", "a.b", "../b", "keys", 1])
def test_names_that_a_peer_may_not_have(name):
    assert "peer_model names models by" in wrong(MUTUAL, peer_model={name: bert(2)})


def test_models_that_are_not_apart():
    model = bert(1)
    copied = "give a copy, made with copy.deepcopy(student_model)"
    assert f"peer_model is student_model itself: {copied}" in wrong(MUTUAL, student=model, peer_model=model)
    assert "teacher_model is student_model itself" in wrong(SOFT, {"a": model}, model)
    assert "peer_model a and peer_model b are one model: give a copy" in wrong(
        MUTUAL, peer_model={"a": model, "b": model}
    )
    assert "teacher_model and peer_model have one name: a" in wrong(MUTUAL, {"a": bert(1)}, peer_model={"a": bert(1)})
    assert "found no model at all" in wrong(SOFT, {})
    assert "teacher_model a is a torch module; found 'bert-base'" in wrong(SOFT, {"a": "bert-base"})
    assert "peer_model peer is a torch module; found 3" in wrong(SOFT, bert(2), peer_model=3)


def test_an_optimizer_that_leaves_a_peer_out():
    student = bert(1)
    said = None
    with pytest.raises(ConfigError) as caught:
        distiller(MUTUAL, None, student, peer_model=bert(1, seed=4), optimizer=sgd(student)).train()
    said = str(caught.value)
    assert said == "optimizer holds no parameter of peer: give it the parameters of every student"


def test_the_loss_model_alone_knows_one_teacher():
    from knowledge_distillation import MultiLayerBasedDistillationLoss

    config = [{**LOGITS, "teacher_name": "first"}, {**LOGITS, "teacher_name": "second"}]
    batch, model = batches(1)[0], bert(1)
    output = model(input_ids=batch["input_ids"])
    with pytest.raises(ConfigError, match="gets the output of one teacher, and the config names first, second"):
        MultiLayerBasedDistillationLoss(config)(output, output, batch, batch)


def test_tokens_of_a_wrong_vocabulary_are_said_to_be_a_peers():
    small = bert(1, vocab_size=5)
    said = wrong(MUTUAL, peer_model=small)
    assert "the peer's vocabulary has 5 entries" in said and VOCABULARY > 5


def test_an_unknown_teacher_hides_no_other_problem():
    config = [{**LOGITS, "loss": "kl_divergance"}, {**LOGITS, "teacher_name": "big"}]
    with pytest.raises(ConfigError) as raised:
        distiller(config).plan()
    said = str(raised.value)
    assert "2 problems" in said and "Nearest: kl_divergence" in said and "'big' is no teacher here" in said


def test_relations_of_one_or_two_samples_are_warned_about():
    entry = {"teacher": "layer4.hidden_states", "student": "layer2.hidden_states", "loss": "rkd_distance"}
    notes = distiller([entry], train_dataloader=batches(2, size=1)).plan().notes
    assert any("1 of them in a batch leave little or nothing to learn" in note for note in notes)
