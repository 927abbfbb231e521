from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dns_onnx.converters.exporter import export_model
from dns_onnx.errors import ModelError
from dns_onnx.runtime import check
from dns_onnx.runtime.bench import bench
from dns_onnx.runtime.check import KERNELS, NATIVE, ORIGINAL, STOCK
from dns_onnx.runtime.library import library_available
from dns_onnx.runtime.sizes import file_bytes


@pytest.fixture
def pruned(small: Path) -> Path:
    """The small net with four fifths of fc1 cut, written as csr."""
    model = onnx.load(small / "net.onnx")
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.8)] = 0
    export_model(small / "net.onnx", {"fc1.w": weight}, small / "pruned.onnx")
    return small


def rows(folder: Path) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    data = np.load(folder / "test.npz")
    return [({"x": data["x"]}, data["labels"])]


def test_a_good_file_passes_with_all_figures(pruned: Path) -> None:
    found = check(pruned / "net.onnx", pruned / "pruned.onnx", rows(pruned), seconds=0.05)
    assert found.ok, found.problems
    counts = {t.name: (t.nnz, t.size) for t in found.tensors}
    assert counts["fc1.w"] == (52, 256)
    assert counts["fc2.w"] == (128, 128)
    assert (found.kept, found.total) == (52 + 32 + 128 + 4, 420)
    assert found.sizes.file == (pruned / "pruned.onnx").stat().st_size
    assert found.sizes.original == (pruned / "net.onnx").stat().st_size
    names = [t.name for t in found.timings]
    assert names[:2] == [ORIGINAL, STOCK]
    nodes = onnx.load(pruned / "pruned.onnx").graph.node
    has_kernel = any(n.op_type in KERNELS for n in nodes)
    assert (NATIVE in names) == (has_kernel and library_available())
    assert found.to_json()["ok"] is True


def test_a_wrong_output_is_found_and_named(pruned: Path) -> None:
    def reference(inputs):
        return [np.zeros((len(inputs["x"]), 4), np.float32)]

    found = check(pruned / "net.onnx", pruned / "pruned.onnx", rows(pruned), reference=reference,
                  seconds=0.05)  # fmt: skip
    assert not found.ok
    assert "output 'y' differs from the masked training graph" in found.problems[0]


@pytest.mark.parametrize(
    ("entries", "off", "holds"),
    [(1, 3e-4, True), (1, 0.05, False), (200, 3e-4, False)],
    ids=["few and near", "few but far", "near but many"],
)
def test_rounding_that_a_few_entries_amplify_is_no_problem(
    pruned: Path, entries: int, off: float, holds: bool
) -> None:
    from dns_onnx.runtime import session

    def reference(inputs):
        scores = session(pruned / "pruned.onnx", native=False).run(None, dict(inputs))[0]
        scores.ravel()[:entries] += off * np.abs(scores).max()
        return [scores]

    found = check(pruned / "net.onnx", pruned / "pruned.onnx", rows(pruned), reference=reference,
                  seconds=0.05)  # fmt: skip
    assert found.outputs[0].equal == holds


def test_a_rise_of_the_error_beyond_the_allowed_is_a_problem(pruned: Path) -> None:
    data = np.load(pruned / "test.npz")["x"]
    from dns_onnx.runtime import session

    right = session(pruned / "net.onnx", native=False).run(None, {"x": data})[0].argmax(1)
    labelled = [({"x": data}, right)]
    found = check(pruned / "net.onnx", pruned / "pruned.onnx", labelled, max_drop=0.0, seconds=0.05)
    assert found.metric.before == 1.0
    assert found.metric.after < 1.0
    assert found.metric.drop == pytest.approx(100 * (1 - found.metric.after))
    assert "points, more than the 0 allowed" in found.problems[0]
    loose = check(pruned / "net.onnx", pruned / "pruned.onnx", labelled, max_drop=100, seconds=0.05)
    assert loose.ok


@pytest.mark.parametrize("off", [0, 1], ids=["the order", "the file"])
def test_what_rounding_selects_is_held_against_the_dense_form(small: Path, off: int) -> None:
    """Scores that are nearly equal may come in another order; a wrong file stays wrong."""
    from dns_onnx.runtime import session

    model = onnx.load(small / "net.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    model.graph.node.append(onnx.helper.make_node("TopK", ["y", "two"], ["best", "which"], axis=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("which", 7, ["n", 2]))
    onnx.save(model, small / "net.onnx")
    sess = session(small / "net.onnx", native=False)

    def turned(inputs):
        scores, which = sess.run(None, dict(inputs))
        return [scores + off, which[:, ::-1]]

    data = [({"x": np.load(small / "test.npz")["x"]}, None)]
    found = check(small / "net.onnx", small / "net.onnx", data, reference=turned, seconds=0.05)
    assert [o.equal for o in found.outputs] == [not off, True]
    assert any("as in the dense form" in word for word in found.words)


def test_integer_outputs_must_be_equal(small: Path) -> None:
    model = onnx.load(small / "net.onnx")
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("label", 7, ["n"]))
    onnx.save(model, small / "net.onnx")

    def one_off(inputs):
        from dns_onnx.runtime import session

        scores, label = session(small / "net.onnx", native=False).run(None, inputs)
        label[3] = (label[3] + 1) % 4
        return [scores, label]

    found = check(small / "net.onnx", small / "net.onnx", rows(small), reference=one_off,
                  seconds=0.05)  # fmt: skip
    assert ["label" in p for p in found.problems] == [True]


def test_external_data_count_as_bytes_of_the_file(small: Path) -> None:
    model = onnx.load(small / "net.onnx")
    onnx.save(model, small / "ext.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    both = (small / "ext.onnx").stat().st_size + (small / "w.bin").stat().st_size
    assert file_bytes(small / "ext.onnx") == both


def test_contenders_take_turns_and_the_first_is_the_measure(pruned: Path) -> None:
    found = bench({"a": pruned / "net.onnx", "b": pruned / "pruned.onnx"}, seconds=0.05)
    assert [t.name for t in found] == ["a", "b"]
    assert found[0].ratio == 1.0
    assert found[1].ratio == pytest.approx(found[0].latency_ms / found[1].latency_ms)
    assert found[0].runs == found[1].runs >= 5


def test_a_file_with_other_inputs_is_refused(pruned: Path) -> None:
    other = onnx.load(pruned / "net.onnx")
    other.graph.input[0].name = other.graph.node[0].input[0] = "image"
    onnx.save(other, pruned / "other.onnx")
    with pytest.raises(ModelError, match=r"other.onnx: expected the inputs of .*, got \{'image'"):
        check(pruned / "net.onnx", pruned / "other.onnx", seconds=0.05)
