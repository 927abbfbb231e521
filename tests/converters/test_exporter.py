"""Trained weights go back into the original file, safely, and only where they belong."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper

from dns_onnx.converters.encodings import files, to_dense
from dns_onnx.converters.exporter import convert, export_model
from dns_onnx.converters.importer import import_model
from dns_onnx.errors import ExportError
from dns_onnx.masks import holders

from .exporter_models import build, run, sparse, tensors


def net(**options: Any) -> ModelProto:
    """A dense net of two layers: X [n, 30] -> fc1 [120] -> fc2 [40]."""
    rng = np.random.default_rng(0)
    weights = {
        "fc1.w": rng.standard_normal((120, 30)).astype(np.float32),
        "fc1.b": rng.standard_normal(120).astype(np.float32),
        "fc2.w": rng.standard_normal((40, 120)).astype(np.float32),
    }
    last = ["r", "fc2.w"]
    if options.get("opset", 13) < 11:  # Gemm's C is not optional there
        last.append("fc2.b")
        weights["fc2.b"] = np.zeros(40, np.float32)
    nodes = [
        helper.make_node("Gemm", ["X", "fc1.w", "fc1.b"], ["h"], name="fc1", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu1"),
        helper.make_node("Gemm", last, ["Y"], transB=1),
    ]
    return build(nodes, {"X": ("n", 30)}, weights, **options)


def pruned(density: float = 0.1) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"fc1.w": sparse(rng, (120, 30), density), "fc2.w": sparse(rng, (40, 120), density)}


X = np.random.default_rng(2).standard_normal((4, 30)).astype(np.float32)


def test_only_the_given_weights_change(tmp_path: Path) -> None:
    model = net()
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name = "elsewhere"
    made = export_model(model, pruned(), tmp_path / "out.onnx", metadata={"seed": "7"})
    loaded = onnx.load(tmp_path / "out.onnx")
    assert loaded.SerializeToString() == made.model.SerializeToString()
    assert made.files == [tmp_path / "out.onnx"]
    notes = {entry.key: entry.value for entry in loaded.metadata_props}
    assert notes["author"] == "somebody"
    assert notes["dns_onnx.seed"] == "7"
    assert notes["dns_onnx.format"] == "csr"
    assert loaded.producer_name == "elsewhere"
    assert loaded.graph.input == model.graph.input
    assert loaded.graph.output == model.graph.output
    assert [n.name for n in loaded.graph.node if n.domain != "dns_onnx"] == ["relu1"]
    back = to_dense(loaded)
    assert back.graph.node == model.graph.node
    assert back.graph.initializer[1] == model.graph.initializer[1]
    assert all(np.array_equal(tensors(back)[name], w) for name, w in pruned().items())


@pytest.mark.parametrize("format", ["csr", "portable", "coo", "dense"])
def test_what_a_model_says_of_itself_comes_back(format: str) -> None:
    model = net()
    model.producer_name, model.producer_version = "elsewhere", "2.1"
    model.domain, model.model_version, model.doc_string = "org.test", 7, "a net\nof two layers"
    model.opset_import.append(helper.make_opsetid("org.unknown", 3))
    helper.set_model_props(model, {"author": "somebody", "format": "theirs"})
    graph = model.graph
    graph.doc_string = "the graph"
    graph.value_info.append(helper.make_tensor_value_info("h", 1, ["n", 120]))
    graph.input[0].doc_string, graph.output[0].doc_string = "an input", "an output"
    graph.metadata_props.add(key="stage", value="late")
    for node in graph.node:
        node.doc_string = f"about {node.output[0]}"
        node.metadata_props.add(key="seen", value="yes")
    for tensor in graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
    dense = export_model(model, pruned(), format="dense").model
    made = export_model(model, pruned(), format=format).model
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(made, name) == getattr(model, name), name
    assert {p.key: p.value for p in model.metadata_props}.items() <= {
        p.key: p.value for p in made.metadata_props
    }.items()
    assert ("org.unknown", 3) in {(o.domain, o.version) for o in made.opset_import}
    for name in ("input", "output", "value_info", "metadata_props"):
        assert list(getattr(made.graph, name)) == list(getattr(graph, name)), name
    assert made.graph.doc_string == "the graph"
    assert {n.doc_string for n in made.graph.node} >= {n.doc_string for n in graph.node}
    assert to_dense(made).SerializeToString() == dense.SerializeToString()


def test_outputs_are_those_of_the_dense_file_bit_for_bit() -> None:
    wanted = run(export_model(net(), pruned(), format="dense").model, X=X)[0]
    for format in ("csr", "portable", "coo"):
        assert np.array_equal(
            run(export_model(net(), pruned(), format=format).model, X=X)[0], wanted
        )


def test_a_weight_that_did_not_change_leaves_its_tensor_untouched() -> None:
    model = net()
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values.reshape(-1).tolist())
    made = export_model(model, {"fc1.w": values, "fc2.w": pruned()["fc2.w"]})
    assert made.model.graph.initializer[0] == tensor
    assert made.tensors[0].reason == "no entry is cut"


def test_negative_zeros_of_multiplied_masks_are_cut_entries() -> None:
    weight = tensors(net())["fc1.w"]
    masked = weight * (np.abs(weight) > 1.5)
    assert np.signbit(masked[masked == 0]).any()
    made = export_model(net(), {"fc1.w": masked})
    assert made.tensors[0].nnz == np.count_nonzero(masked)
    assert not np.signbit(tensors(to_dense(made.model))["fc1.w"][masked == 0]).any()


def test_rows_tell_what_became_of_each_tensor() -> None:
    weights = {**pruned(), "fc1.b": tensors(net())["fc1.b"]}
    first, bias, second = export_model(net(), weights).tensors
    assert (first.name, first.node, first.op_type, first.shape) == (
        "fc1.w",
        "fc1",
        "Gemm",
        (120, 30),
    )
    assert first.nnz == np.count_nonzero(weights["fc1.w"])
    assert (first.operator, first.reason) == ("CsrGemm", "")
    assert first.bytes < first.dense_bytes
    assert (bias.encoding, bias.reason) == ("dense", "no entry is cut")
    assert second.node == "Y"


def test_row_bytes_are_those_of_the_file() -> None:
    model = net()
    made = export_model(model, pruned(), format="portable")
    dense = export_model(model, pruned(), format="dense").model.ByteSize()
    saved = sum(row.dense_bytes - row.bytes for row in made.tensors)
    assert dense - made.model.ByteSize() == pytest.approx(saved, abs=60)  # the format's note


def test_min_sparsity_keeps_tensors_dense_with_the_reason() -> None:
    rows = export_model(net(), pruned(0.4), min_sparsity=0.67).tensors
    assert {row.encoding for row in rows} == {"dense"}
    assert "zeros is below the 67% threshold (--min-sparsity)" in rows[0].reason


def test_never_bigger() -> None:
    model = build(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        {"X": (1, 8)},
        {"W": sparse(np.random.default_rng(3), (8, 8), 0.2)},
    )
    for format in ("csr", "portable", "coo"):
        made = convert(model, format)
        assert made.model.ByteSize() <= model.ByteSize()
        assert made.tensors[0].reason or made.tensors[0].encoding != "dense"


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ExportError, match=r"got \['fc9.w'\]"):
        export_model(net(), {"fc9.w": X})
    with pytest.raises(ExportError, match=r"'fc1.w': expected float32 \[120, 30\], got float32"):
        export_model(net(), {"fc1.w": X})
    with pytest.raises(ExportError, match="format: expected one of csr, portable, coo, dense"):
        export_model(net(), pruned(), format="zip")
    with pytest.raises(ExportError, match="values: expected one of float32"):
        export_model(net(), pruned(), values="int3")


def test_weights_in_constant_nodes_and_bodies_are_found() -> None:
    rng = np.random.default_rng(4)
    value = numpy_helper.from_array(rng.standard_normal((60, 60)).astype(np.float32))
    nodes = [
        helper.make_node("Constant", [], ["W"], value=value),
        helper.make_node("MatMul", ["X", "W"], ["Y"]),
    ]
    model = build(nodes, {"X": (2, 60)}, {})
    weight = sparse(rng, (60, 60))
    for format in ("csr", "portable", "coo", "dense"):
        made = export_model(model, {"W": weight}, format=format)
        assert np.array_equal(run(made.model, X=np.eye(2, 60, dtype=np.float32))[0], weight[:2])
        assert made.model.ByteSize() < model.ByteSize() or format == "dense"


def test_weights_of_one_name_in_two_bodies_stay_apart() -> None:
    rng = np.random.default_rng(6)
    weights = {"w": sparse(rng, (60, 60)), "w#1": sparse(rng, (60, 60))}
    branches = {}
    for branch in ("else_branch", "then_branch"):  # each weight is dense in the original
        w = rng.standard_normal((60, 60)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["X", "w"], [f"{branch}_y"])]
        result = helper.make_tensor_value_info(f"{branch}_y", 1, [2, 60])
        held = [numpy_helper.from_array(w, "w")]
        branches[branch] = helper.make_graph(nodes, branch, [], [result], held)
    graph = helper.make_graph(
        [helper.make_node("If", ["take"], ["Y"], **branches)],
        "two",
        [
            helper.make_tensor_value_info("take", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("X", 1, [2, 60]),
        ],
        [helper.make_tensor_value_info("Y", 1, [2, 60])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = import_model(model)
    held_by = holders(module)
    assert set(held_by) == set(weights)
    with torch.no_grad():
        for name, weight in weights.items():
            held_by[name].weight.copy_(torch.from_numpy(weight))
    x = rng.standard_normal((2, 60)).astype(np.float32)
    for format in ("csr", "portable", "coo", "dense"):
        made = export_model(model, weights, format=format)
        assert {row.name for row in made.tensors} == set(weights)
        for take in (False, True):
            wanted = module(torch.tensor(take), torch.from_numpy(x)).detach().numpy()
            got = run(made.model, take=np.array(take), X=x)[0]
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


# Old files


@pytest.mark.parametrize("format", ["csr", "portable", "coo"])
@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_old_operator_sets_are_lifted(opset: int, format: str) -> None:
    model = net(opset=opset, ir_version=3)
    made = export_model(model, pruned(), format=format)
    assert made.format == format
    assert made.model.graph.input[0].name == "X"
    lifted = format != "coo"
    assert made.model.opset_import[0].version == (13 if lifted else opset)
    assert bool(made.notes) == lifted
    onnx.checker.check_model(made.model, full_check=lifted)
    wanted = run(export_model(model, pruned(), format="dense").model, X=X)[0]
    np.testing.assert_allclose(run(made.model, X=X)[0], wanted, rtol=1e-6, atol=1e-6)
    assert all(row.encoding != "dense" for row in made.tensors)


def test_initializers_that_are_inputs_come_back() -> None:
    for ir_version, opset in ((3, 13), (6, 13)):
        model = net(opset=opset, ir_version=ir_version)
        if ir_version == 6:
            model.graph.input.append(helper.make_tensor_value_info("fc1.w", 1, [120, 30]))
        dense = export_model(model, pruned(), format="dense").model
        for format in ("csr", "portable", "coo"):
            made = export_model(model, pruned(), format=format)
            onnx.checker.check_model(made.model)
            session = ort.InferenceSession(made.model.SerializeToString())
            assert [value.name for value in session.get_inputs()] == ["X"]
            assert to_dense(made.model).SerializeToString() == dense.SerializeToString()


def test_what_cannot_be_lifted_becomes_coo(monkeypatch: pytest.MonkeyPatch) -> None:
    from dns_onnx.converters.encodings import lift

    monkeypatch.setattr(lift, "difference", lambda *_: "output 'Y' changes")
    made = export_model(net(opset=9, ir_version=4), pruned(), format="csr")
    assert made.format == "coo"
    assert "could not be lifted (to 13: output 'Y' changes)" in made.notes[0]
    assert made.tensors[0].encoding == "coo int64"


def test_nothing_is_lifted_for_nothing() -> None:
    made = convert(net(opset=9, ir_version=4), "csr")
    assert made.model.opset_import[0].version == 9
    assert made.notes == []


# Files


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"expected the folder .*nowhere.* to exist"):
        export_model(net(), pruned(), tmp_path / "nowhere" / "out.onnx")


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("external", [False, True])
def test_full_disk_leaves_the_old_file(
    step: str, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if external:
        monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    if step == "write":
        monkeypatch.setattr(files, "_write", full)
    else:
        monkeypatch.setattr(files.os, step, full)
    with pytest.raises(ExportError, match=r"No space left on device.*make room") as caught:
        export_model(net(), pruned(), path)
    assert "out.onnx" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("format", ["csr", "portable", "coo", "dense"])
def test_large_models_go_into_a_data_file(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 64)
    path = tmp_path / "big.onnx"
    made = export_model(net(), pruned(), path, format=format)
    assert made.files == [path, *tmp_path.glob("big.onnx.*.data")]
    assert len(made.files) == 2
    if format != "coo":  # the checker reads no sparse tensor from a data file; ONNX Runtime does
        onnx.checker.check_model(str(path), full_check=True)
    assert made.model.graph.initializer[0].raw_data
    assert path.stat().st_size < 8000
    wanted = run(export_model(net(), pruned(), format="dense").model, X=X)[0]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"X": X})[0], wanted)
    again = convert(path, "dense")
    assert all(np.array_equal(tensors(again.model)[n], w) for n, w in pruned().items())


def test_crash_between_the_two_files_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(files, "EXTERNAL_BYTES", 64)
    path = tmp_path / "big.onnx"
    export_model(net(), pruned(0.3), path)
    rename, renamed = os.replace, []

    def crash(source: str, target: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        export_model(net(), pruned(), path)
    assert [target.suffix for target in renamed] == [".data"]
    old = convert(path, "dense").model
    assert all(np.array_equal(tensors(old)[n], w) for n, w in pruned(0.3).items())


def test_data_of_earlier_exports_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    kept = tmp_path / "net.onnx.data"
    kept.write_bytes(b"somebody's own")
    with monkeypatch.context() as large:
        large.setattr(files, "MAX_FILE_BYTES", 2000)
        large.setattr(files, "EXTERNAL_BYTES", 64)
        first = export_model(net(), pruned(0.3), path).files
        second = export_model(net(), pruned(), path).files
    assert first[1] != second[1]
    assert set(tmp_path.iterdir()) == {*second, kept}
    assert export_model(net(), pruned(), path).files == [path]
    assert set(tmp_path.iterdir()) == {path, kept}


# Real files


def test_published_lenet5(paper_models: Path, tmp_path: Path) -> None:
    original = paper_models / "lenet5_dense.onnx"
    weights = tensors(onnx.load(paper_models / "lenet5_dns.onnx"))
    digits = np.random.default_rng(5).random((64, 1, 28, 28), np.float32)
    dense = export_model(original, weights, tmp_path / "dense.onnx", format="dense")
    (wanted,) = run(dense.model, data=digits)
    for format in ("csr", "portable", "coo"):
        made = export_model(original, weights, tmp_path / f"{format}.onnx", format=format)
        assert np.array_equal(run(made.model, data=digits)[0], wanted)
        for other in ("csr", "portable", "coo", "dense"):
            turned = convert(tmp_path / f"{format}.onnx", other).model
            assert np.array_equal(run(turned, data=digits)[0], wanted)
        assert to_dense(made.model).SerializeToString() == dense.model.SerializeToString()
    assert (tmp_path / "csr.onnx").stat().st_size <= 30_000
