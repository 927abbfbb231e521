"""Losses and metrics of a run, with labels and without: each on a net small enough to check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from dns_onnx import compress
from dns_onnx.attach import to_device
from dns_onnx.config import Config, parse_config
from dns_onnx.converters.heads import Head
from dns_onnx.converters.importer import import_model
from dns_onnx.data import ArrayDataset, Batch
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.losses import cross_entropy, ctc, labels_loss, teacher_loss
from dns_onnx.objective import prepare_objective
from dns_onnx.rows import input_specs, model_feeding
from tests.test_attach import branching

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def net(*tail: str, classes: int = 4, extra: bool = False) -> onnx.ModelProto:
    """A linear layer from x [n, 8] and the operators of `tail`; with `extra`, a second output."""
    w = RNG.standard_normal((classes, 8)).astype(np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["t0"], name="fc", transB=1)]
    for i, op in enumerate(tail):
        more = {"axis": 1} if op == "Softmax" else {}
        nodes.append(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], **more))
    nodes[-1].output[0] = "y"
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])]
    weights = [numpy_helper.from_array(w, "w")]
    if extra:
        nodes.append(helper.make_node("Gemm", ["x", "v"], ["z"], name="side", transB=1))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", classes]))
        weights.append(numpy_helper.from_array(w[::-1].copy(), "v"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def objective(model: onnx.ModelProto, config: Config, **targets: np.ndarray):
    x = RNG.standard_normal((6, 8)).astype(np.float32)
    data = ArrayDataset(input_specs(model), {"x": x}, targets, config.preprocess, "test")
    graph = import_model(model)
    training, found = prepare_objective(model, graph, config, model_feeding(model), data, CPU)
    return training, found, Batch({"x": x}, targets)


def settings(**train: object) -> Config:
    return parse_config({"train": train}, "test")


CLASSES = {"labels": RNG.integers(0, 4, 6)}
YES_OR_NO = {"labels": RNG.integers(0, 2, (6, 4))}
NUMBERS = {"labels": RNG.standard_normal((6, 4)).astype(np.float32)}


@pytest.mark.parametrize(
    ("tail", "targets", "said"),
    [
        ((), CLASSES, "cross-entropy with labels, at 'y'; metric: accuracy"),
        (("Softmax",), CLASSES, "cross-entropy with labels, at 't0'; metric: accuracy"),
        (("Sigmoid",), YES_OR_NO, "binary with labels, at 't0'; metric: accuracy"),
        ((), YES_OR_NO, "binary with labels, at 'y'; metric: accuracy"),
        (("Tanh",), NUMBERS, "mse with labels, at 'y'; metric: mse"),
        (("Softmax",), {}, "kl with the original model as teacher, at 't0'; metric: agreement"),
        (("Tanh",), {}, "mse with the original model as teacher, at 'y'; metric: relative-error"),
        (("Sigmoid",), {}, "binary with the original model as teacher, at 't0'; "
         "metric: relative-error"),
    ],
)  # fmt: skip
def test_loss_and_metric_follow_from_labels_and_model(tail, targets, said: str) -> None:
    _, found, _ = objective(net(*tail), Config(), **targets)
    assert found.said == said


def test_cross_entropy_is_the_one_of_torch_before_a_softmax() -> None:
    config = parse_config({"distill": {"weight": 0.0}}, "test")
    training, found, batch = objective(net("Softmax"), config, **CLASSES)
    inputs, targets = to_device(batch, CPU)
    logits = inputs[0] @ training.graph.w.weight.T
    got = found.loss(training(*inputs), inputs, targets)
    assert torch.equal(got, F.cross_entropy(logits, targets["labels"]))
    assert found.teacher is None
    right = (logits.argmax(1) == targets["labels"]).float().mean()
    assert found.meter(training, [batch], CPU).value() == pytest.approx(float(right))


def test_every_loss_of_an_unchanged_model_and_its_teacher_is_nought() -> None:
    for tail in ((), ("Softmax",), ("Sigmoid",), ("Tanh",)):
        training, found, batch = objective(net(*tail, extra=True), Config())
        inputs, targets = to_device(batch, CPU)
        assert found.loss(training(*inputs), inputs, targets).item() == pytest.approx(0, abs=1e-6)
        assert found.metric.drop(0, found.meter(training, [batch], CPU).value()) == pytest.approx(0)
        assert len(found.heads) == 2


def test_an_original_that_says_nothing_finite_is_told() -> None:
    model = net("Abs", "Neg", "Sqrt")
    with pytest.raises(DataError, match=r"NaN or infinity \(or nothing\) at \['y'\] on all"):
        objective(model, Config())


def test_a_teacher_does_not_move_with_its_pupil() -> None:
    training, found, batch = objective(net("Softmax"), Config())
    with torch.no_grad():
        training.graph.w.weight.mul_(-1)
    inputs, targets = to_device(batch, CPU)
    loss = found.loss(training(*inputs), inputs, targets)
    loss.backward()
    assert loss > 0.1
    assert training.graph.w.weight.grad.abs().sum() > 0
    assert found.meter(training, [batch], CPU).value() < 1.0
    assert not any(p.requires_grad for p in found.teacher.parameters())


def test_labels_and_teacher_are_mixed_with_hintons_temperature() -> None:
    config = parse_config({"distill": {"weight": 0.3, "temperature": 4.0}}, "test")
    training, found, batch = objective(net("Softmax"), config, **CLASSES)
    with torch.no_grad():
        training.graph.w.weight.mul_(0.5)
    inputs, targets = to_device(batch, CPU)
    student = training(*inputs)[0]
    soft = F.softmax(2 * student / 4, 1)
    wanted = 16 * F.kl_div(F.log_softmax(student / 4, 1), soft, reduction="batchmean")
    told = F.cross_entropy(student, targets["labels"])
    got = found.loss([student], inputs, targets)
    torch.testing.assert_close(got, 0.7 * told + 0.3 * wanted)
    assert found.metric.name == "accuracy"


@pytest.mark.parametrize(
    ("targets", "loss"), [(CLASSES, "cross-entropy with labels and kl"),
                          (YES_OR_NO, "binary with labels and binary"),
                          (NUMBERS, "mse with labels and mse")],
)  # fmt: skip
def test_a_teacher_beside_labels_reads_outputs_as_they_do(targets, loss: str) -> None:
    config = parse_config({"distill": {"weight": 0.3}}, "test")
    _, found, _ = objective(net(), config, **targets)
    assert found.said.startswith(f"{loss} with the original model as teacher (weight 0.3), at 'y'")


def test_a_teacher_whose_part_is_open_says_nothing_until_it_has_one() -> None:
    training, found, batch = objective(net("Softmax"), Config(), **CLASSES)
    assert found.open
    with torch.no_grad():
        training.graph.w.weight.mul_(0.5)
    inputs, targets = to_device(batch, CPU)
    outputs = training(*inputs)
    told = F.cross_entropy(outputs[0], targets["labels"])
    assert torch.equal(found.loss(outputs, inputs, targets), told)
    wanted = F.kl_div(
        F.log_softmax(outputs[0], 1), F.softmax(2 * outputs[0], 1), reduction="batchmean"
    )
    shared = found.sharing(0.25)
    torch.testing.assert_close(shared.loss(outputs, inputs, targets), 0.75 * told + 0.25 * wanted)
    assert shared.said == f"{found.said}; the original model teaches, too (weight 0.25)"


@pytest.mark.parametrize(
    ("told", "targets"),
    [({"distill": {"weight": 0.0}}, CLASSES), ({"distill": {"temperature": 2.0}}, CLASSES),
     ({"solver": {"lr": 0.1}}, CLASSES), ({"surgery": {"c_rate": 1.0}}, CLASSES),
     ({}, YES_OR_NO), ({}, {})],
    ids=["weight", "temperature", "solver", "thresholds", "binary", "no labels"],
)  # fmt: skip
def test_what_is_told_leaves_the_teacher_no_open_part(told, targets) -> None:
    _, found, _ = objective(net(), parse_config(told, "test"), **targets)
    assert not found.open


def test_relative_error_reads_what_users_read() -> None:
    training, found, batch = objective(net("Sigmoid"), Config())
    with torch.no_grad():
        training.graph.w.weight.mul_(1.1)
    logits = batch.inputs["x"] @ training.graph.w.weight.detach().numpy().T
    before, after = (1 / (1 + np.exp(-z)) for z in (logits / 1.1, logits))
    wanted = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert found.meter(training, [batch], CPU).value() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("train", "targets", "error", "message"),
    [
        ({"loss": "huber"}, CLASSES, ConfigError, "expected cross-entropy, binary, mse"),
        ({"loss": "cross-entropy"}, {}, DataError, "expected an array `labels`, got none"),
        ({"metric": "accuracy"}, {}, ConfigError, "compares with labels and the data have none"),
        ({"output": "nowhere"}, CLASSES, ConfigError, "expected values of the graph"),
        ({"loss": "os.path:join"}, CLASSES, ConfigError, "names no metric of its own"),
    ],
)
def test_what_does_not_go_together_is_told(train, targets, error, message: str) -> None:
    with pytest.raises(error, match=message):
        objective(net("Softmax"), settings(**train), **targets)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (np.array([0, 3, 1, 2, 1, 0], np.float32), r"float32 \[1\]; give labels.astype\(int\)"),
        (np.eye(4, dtype=np.float32)[[0, 3, 1, 2, 1, 0]], r"one-hot rows; give labels.argmax\(1\)"),
    ],
    ids=["numbers", "one-hot"],
)
def test_classes_that_are_given_as_fractions_are_told(labels: np.ndarray, remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        objective(net("Softmax"), Config(), labels=labels)
    if labels.ndim == 2:
        assert (
            "mse with labels"
            in objective(net("Softmax"), settings(loss="mse"), labels=labels)[1].said
        )
        assert "mse with labels" in objective(net(), Config(), labels=labels)[1].said


@pytest.mark.parametrize(
    "labels",
    [np.array([0, 1, 1, 0, 1, 0]), np.array([[0], [1], [1], [0], [1], [0]], np.float32)],
    ids=["numbers", "a column"],
)
def test_a_single_score_learns_yes_and_no(labels: np.ndarray) -> None:
    training, found, batch = objective(net("Sigmoid", classes=1), Config(), labels=labels)
    data = ArrayDataset(input_specs(net(classes=1)), batch.inputs, labels, Config().preprocess, "")
    found.refuse_bad_data(training, {"training": data}, CPU)
    right = (found.meter(training.eval(), [batch], CPU).value(), found.metric.name)
    said = training.read(*to_device(batch, CPU)[0])[0].detach().numpy() > 0.5
    assert right == (np.mean(said == (labels.reshape(-1, 1) > 0)), "accuracy")


def test_a_target_may_name_the_output_that_it_is_for() -> None:
    training, found, batch = objective(net(extra=True), Config(), z=np.zeros((6, 4), np.float32))
    assert [h.output for h in found.heads] == ["z"]
    model, classes = net("Softmax"), {"y": np.array([0, 1, 2, 3, 0, 9])}
    training, found, batch = objective(model, Config(), **classes)
    data = ArrayDataset(input_specs(model), batch.inputs, classes, Config().preprocess, "d")
    with pytest.raises(DataError, match=r"expected 0 to 3 \(the model has 4 classes\), got 9"):
        found.refuse_bad_data(training, {"training": data}, CPU)


def test_bad_data_are_told_before_training() -> None:
    model = net()
    _, found, _ = objective(model, Config(), **CLASSES)
    training = objective(model, Config(), **CLASSES)[0]
    specs, x = input_specs(model), np.zeros((3, 8), np.float32)
    for labels, message in (
        (np.array([0, 1, 4]), "expected 0 to 3"),
        (None, "expected an array `labels` for the metric accuracy"),
        (np.zeros((3, 5), np.int64), r"labels: expected whole numbers of shape \[N\]"),
    ):
        data = ArrayDataset(specs, {"x": x}, labels, Config().preprocess, "d")
        with pytest.raises(DataError, match=message):
            found.refuse_bad_data(training, {"held-out": data}, CPU)


def test_a_branch_that_the_data_never_take_is_left_alone(tmp_path: Path) -> None:
    model = branching()
    onnx.save(model, tmp_path / "net.onnx")
    x = RNG.standard_normal((40, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, flag=np.array(True))
    few = parse_config({**FEW, "surgery": {"c_rate": 0.5, "iter_stop": 100}}, "test")
    result = compress(tmp_path / "net.onnx", tmp_path / "o.onnx", train=f"{tmp_path}/d.npz",
                      config=few, bench_seconds=0.02)  # fmt: skip
    assert [s.weight for s in result.spared if "does not reach" in s.reason] == ["bb.w"]
    assert result.check.kept < result.check.total


# ------------------------------------------------------------------ losses by themselves


def test_label_maps_and_ignored_labels() -> None:
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    want = F.cross_entropy(scores, labels, ignore_index=255)
    assert torch.equal(cross_entropy(scores, labels, ignore=255), want)
    last = cross_entropy(scores.movedim(1, -1), labels, -1, 255)
    torch.testing.assert_close(last, want)


def test_ctc_counts_labels_above_the_blank() -> None:
    scores = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3], [2, 0, 0]])
    want = F.ctc_loss(scores.log_softmax(-1).transpose(0, 1), labels, torch.tensor([6, 6]),
                      torch.tensor([3, 1]))  # fmt: skip
    assert torch.equal(ctc([scores], {"labels": labels}), want)
    shorter = {"labels": labels, "input_lengths": torch.tensor([6, 4])}
    assert not torch.equal(ctc([scores], shorter), want)


@pytest.mark.parametrize("name", ["mse", "l1", "cosine", "kl", "binary"])
def test_losses_against_a_teacher_pull_towards_it(name: str) -> None:
    wanted = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(5, 4).add_(0.1).requires_grad_()
    loss = teacher_loss(name, [Head("y", "y", "values")], 1.0, {"y": 1.0})
    first = loss([given], {"y": wanted})
    first.backward()
    nearer = given.detach() - 0.05 * given.grad / given.grad.norm()
    assert loss([nearer], {"y": wanted}) < first


LOSSES = """
def cube(outputs, targets): return (outputs - targets).abs().pow(3).mean()
def both(outputs, targets): return outputs[0].sum() + targets["weights"].sum()
def wrong(outputs, targets): return 5
"""


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losses_for_test.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    y, z = torch.ones(2, 3), torch.zeros(2, 3)
    one, two = [Head("y", "y", "values")], [Head("y", "y", "values"), Head("z", "z", "values")]
    assert float(labels_loss("losses_for_test:cube", one, -100)([3 * y], {"labels": y})) == 8
    many = {"labels": y, "weights": y}
    assert float(labels_loss("losses_for_test:both", two, -100)([y, z], many)) == 12
    with pytest.raises(ConfigError, match="expected a loss of one number"):
        labels_loss("losses_for_test:wrong", one, -100)([y], {"labels": y})


# ------------------------------------------------------------------ the whole road


FEW = {
    "data": {"batch": 16},
    "train": {"iterations": 150, "eval_every": 50, "log_every": 50},
    "solver": {"lr": 0.05, "policy": "fixed"},
    "surgery": {"c_rate": -0.2, "iter_stop": 100},
}


def test_a_model_is_compressed_without_labels(small: Path) -> None:
    x = np.load(small / "train.npz")["x"]
    np.savez(small / "inputs.npz", x=x)
    result = compress(
        small / "net.onnx", small / "o.onnx", train=f"{small}/inputs.npz", max_drop=60,
        config=parse_config(FEW, "test"), bench_seconds=0.02,
    )  # fmt: skip
    judged = result.check.metric
    assert result.check.ok, result.check.problems
    assert (judged.name, judged.against, judged.before) == ("relative-error", "original", 0)
    assert 0 < judged.after < 0.6
    assert result.check.kept < result.check.total
    assert result.outcome.best_metric == pytest.approx(judged.after, rel=1e-3)


def test_no_data_at_all_is_the_weak_mode(small: Path) -> None:
    result = compress(small / "net.onnx", small / "o.onnx", bench_seconds=0.02,
                      config=parse_config(FEW, "test"))  # fmt: skip
    assert result.metric_source == "random held-out"
    assert "weak mode" in result.check.words[0]
    assert result.check.ok


def test_answers_that_are_remembered_are_those_of_the_teacher() -> None:
    model = net("Softmax", extra=True)
    x = RNG.standard_normal((150, 8)).astype(np.float32)
    rows = ArrayDataset(input_specs(model), {"x": x}, None, Config().preprocess, "test")
    config = parse_config({"train": {"iterations": 50}}, "test")
    graph = import_model(model)
    training, found = prepare_objective(model, graph, config, model_feeding(model), rows, CPU)
    with torch.no_grad():
        training.graph.w.weight.mul_(0.5)
    taught, asked = found.remembered(rows, rows, config, CPU)
    some = np.array([3, 149, 70])
    inputs, none = to_device(rows.take(some), CPU)
    _, answers = to_device(taught.take(some), CPU)
    assert none == {}
    assert len(answers) == 3  # before the Softmax, behind it, and the second output
    calls = []
    found.teacher.register_forward_hook(lambda *_: calls.append(1))
    told = found.loss(training(*inputs), inputs, answers)
    assert not calls
    torch.testing.assert_close(told, found.loss(training(*inputs), inputs, none))
    again = found.meter(training, [asked.take(some)], CPU).value()
    assert again == pytest.approx(found.meter(training, [rows.take(some)], CPU).value(), rel=1e-5)
    moved = config.model_copy(update={"data": config.data.model_copy(update={"shift": 1})})
    assert found.remembered(rows, None, moved, CPU) == (rows, None)
