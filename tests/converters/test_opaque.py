"""Nodes outside torch: which of them run together, and what they compute."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper

from dns_onnx.converters.dtypes import to_numpy
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.opaque import OpaqueStep
from dns_onnx.converters.pieces import pieces
from dns_onnx.errors import UnsupportedOperatorError

from .importer_models import floats, graph_model

ML = "ai.onnx.ml"


def opaque_model(
    nodes: Sequence[NodeProto], inputs: dict[str, np.ndarray], outputs: Sequence[str], **held: Any
) -> tuple[ModelProto, list[np.ndarray]]:
    """A model in operator set 20, with ai.onnx.ml 3."""
    model, feeds = graph_model(list(nodes), inputs, held, outputs, opset=20)
    model.opset_import.add(domain=ML, version=3)
    return model, feeds


def agree(model: ModelProto, feeds: Sequence[np.ndarray]) -> Any:
    """The imported module, once its outputs equal ONNX Runtime's."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    wanted = session.run(None, dict(zip(names, feeds, strict=True)))
    module = import_model(model)
    given = [f if f.dtype == object else torch.from_numpy(f) for f in feeds]
    for runner in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        results = runner(*given)
        results = results if type(results) is tuple else (results,)
        for got, want in zip(results, wanted, strict=True):
            if isinstance(want, list):
                assert got == want
            elif want.dtype == object:
                np.testing.assert_array_equal(to_numpy(got), want)
            else:
                np.testing.assert_allclose(to_numpy(got), want, rtol=1e-5, atol=1e-6)
    return module


def steps(module: torch.nn.Module) -> int:
    return sum(isinstance(m, OpaqueStep) for m in module.modules())


def words() -> np.ndarray:
    return np.array(["A b", "C d", "a B"], object)


def encoder(source: str, target: str, keys: list[str]) -> NodeProto:
    return helper.make_node(
        "LabelEncoder", [source], [target], target, domain=ML,
        keys_strings=keys, values_int64s=list(range(len(keys))), default_int64=0,
    )  # fmt: skip


def lower(source: str, target: str, locale: str = "C") -> NodeProto:
    return helper.make_node(
        "StringNormalizer", [source], [target], "lower", case_change_action="LOWER", locale=locale
    )


def text_pipeline() -> list[NodeProto]:
    """Lower case, split into words, the words' numbers, and their embeddings."""
    return [
        lower("x", "low"),
        helper.make_node("StringSplit", ["low"], ["parts", "count"], "split", delimiter=" "),
        helper.make_node("Reshape", ["parts", "flat"], ["row"], "flatten"),
        encoder("row", "ids", ["a", "b", "c", "d"]),
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("MatMul", ["e", "w"], ["y"], "head"),
    ]


def test_text_runs_as_one_step_and_what_follows_trains() -> None:
    model, feeds = opaque_model(
        text_pipeline(), {"x": words()}, ["y"],
        flat=np.array([-1]), table=floats(4, 3), w=floats(3, 2),
    )  # fmt: skip
    module = agree(model, feeds)
    assert module.meta["opaque"] == [
        "ai.onnx::StringNormalizer 'lower' + ai.onnx::StringSplit 'split' + "
        "ai.onnx::Reshape 'flatten' + ai.onnx.ml::LabelEncoder 'ids'"
    ]
    module(*feeds).sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in module.parameters()) == 2


def test_a_value_inside_a_piece_that_others_read_comes_out() -> None:
    model, feeds = opaque_model(
        text_pipeline(), {"x": words()}, ["y", "count", "low"],
        flat=np.array([-1]), table=floats(4, 3), w=floats(3, 2),
    )  # fmt: skip
    assert steps(agree(model, feeds)) == 1


def trees(**outputs: Any) -> NodeProto:
    """Two leaves on either side of a threshold, for two classes."""
    return helper.make_node(
        "TreeEnsembleClassifier", ["s"], ["label", "scores"], "trees", domain=ML,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], nodes_hitrates=[1.0] * 3,
        nodes_missing_value_tracks_true=[0, 0, 0], class_treeids=[0, 0, 0, 0],
        class_nodeids=[1, 1, 2, 2], class_ids=[0, 1, 0, 1], class_weights=[0.8, 0.2, 0.3, 0.7],
        classlabels_int64s=[0, 1], post_transform="NONE",
    )  # fmt: skip


def linear() -> NodeProto:
    return helper.make_node(
        "LinearClassifier", ["s"], ["label", "scores"], "linear", domain=ML,
        coefficients=[1.0, -1.0, 0.5, -1.0, 1.0, -0.5], intercepts=[0.1, -0.1],
        classlabels_strings=["no", "yes"], post_transform="SOFTMAX",
    )  # fmt: skip


def vectors() -> NodeProto:
    return helper.make_node(
        "SVMRegressor", ["s"], ["scores"], "svm", domain=ML, kernel_type="RBF",
        kernel_params=[0.5, 0.0, 3.0], n_supports=2, one_class=0, rho=[0.1],
        coefficients=[1.0, -1.0], support_vectors=[0.0, 1.0, 0.5, 1.0, 0.0, 0.5],
    )  # fmt: skip


@pytest.mark.parametrize("model", [trees, linear, vectors], ids=lambda f: f.__name__)
def test_a_scikit_learn_pipeline_is_one_step(model: Any) -> None:
    nodes = [
        helper.make_node("Imputer", ["x"], ["filled"], "fill", domain=ML,
                         imputed_value_floats=[0.5], replaced_value_float=float("nan")),
        helper.make_node("Scaler", ["filled"], ["scaled"], "scale", domain=ML,
                         offset=[0.1, 0.2, 0.3], scale=[2.0, 1.0, 0.5]),
        helper.make_node("Normalizer", ["scaled"], ["s"], "norm", domain=ML, norm="L2"),
        model(),
    ]  # fmt: skip
    outputs = ["scores"] if model is vectors else ["label", "scores"]
    x = floats(5, 3)
    x[1, 1] = np.nan
    module = agree(*opaque_model(nodes, {"x": x}, outputs))
    assert steps(module) == 1


def test_maps_come_from_a_step() -> None:
    zipped = helper.make_node(
        "ZipMap", ["scores"], ["maps"], "maps", domain=ML, classlabels_strings=["no", "yes"]
    )
    model, feeds = opaque_model([linear(), zipped], {"s": floats(4, 3)}, ["maps"])
    del model.graph.output[:]
    maps = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    model.graph.output.add(name="maps").type.CopyFrom(helper.make_sequence_type_proto(maps))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"s": feeds[0]})[0]
    (got,) = import_model(model)(torch.from_numpy(feeds[0]))
    for row, want in zip(got, wanted, strict=True):
        assert row.keys() == want.keys()
        assert [row[k] for k in want] == pytest.approx(list(want.values()), rel=1e-5)


def test_a_piece_that_no_single_runtime_has_runs_node_by_node() -> None:
    """ONNX Runtime has no Binarizer of doubles, onnx.reference no CDist."""
    nodes = [
        helper.make_node("Binarizer", ["x"], ["b"], "edge", domain=ML, threshold=0.0),
        helper.make_node("CDist", ["b", "b"], ["y"], "far", domain="com.microsoft",
                         metric="sqeuclidean"),
    ]  # fmt: skip
    x = floats(4, 3).astype(np.float64)
    model, feeds = opaque_model(nodes, {"x": x}, ["y"])
    model.opset_import.add(domain="com.microsoft", version=1)
    module = import_model(model)
    assert steps(module) == 1
    b = (x > 0).astype(np.float64)
    wanted = ((b[:, None] - b) ** 2).sum(-1)
    np.testing.assert_allclose(to_numpy(module(torch.from_numpy(feeds[0]))), wanted)


def test_a_way_out_of_a_piece_and_back_divides_it() -> None:
    """Lower -> numbers -> a torch sum -> text again -> joined with lower: two pieces."""
    nodes = [
        lower("x", "low"),
        encoder("low", "ids", ["a b", "c d"]),
        helper.make_node("Mul", ["ids", "ids"], ["square"], "square"),
        helper.make_node("Cast", ["square"], ["digits"], "digits", to=TensorProto.STRING),
        helper.make_node("StringConcat", ["low", "digits"], ["y"], "join"),
    ]
    model, feeds = opaque_model(nodes, {"x": words()}, ["y"])
    assert steps(agree(model, feeds)) == 2


def test_pieces_are_convex_and_connected() -> None:
    """Of random graphs: every piece is connected, and their order computes operands first."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        nodes = [
            helper.make_node(
                rng.choice(["Torch", "Opaque"]),
                [f"v{j}" for j in rng.choice(i, min(i, 2), replace=False)] if i else ["x"],
                [f"v{i}"],
            )
            for i in range(14)
        ]
        found = pieces(nodes, lambda n: n.op_type == "Opaque", lambda n: False)
        done = {"x"}
        for piece in found:
            made = {n.output[0] for n in piece}
            assert {name for n in piece for name in n.input} - made <= done
            assert len(piece) == 1 or all(n.op_type == "Opaque" for n in piece)
            done |= made
        assert len(done) == 15


def test_unknown_operators_are_refused_all_at_once() -> None:
    nodes = [
        helper.make_node("Whiten", ["x"], ["a"], "first", domain="acme"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Sharpen", ["b"], ["y"], domain="acme"),
    ]
    model, _ = graph_model(nodes, {"x": floats(2)}, {}, ["y"], opset=20, domain="acme")
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_model(model)
    assert caught.value.nodes == ["acme::Whiten (opset 1) 'first'", "acme::Sharpen (opset 1) 'y'"]
    assert "converters.registry.op" in str(caught.value)


def test_a_custom_operator_with_a_body_is_written_out() -> None:
    body = helper.make_function(
        "acme", "Whiten", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    node = helper.make_node("Whiten", ["x"], ["y"], domain="acme")
    model, feeds = graph_model([node], {"x": floats(2)}, {}, ["y"], opset=20, domain="acme")
    model.functions.append(body)
    assert steps(agree(model, feeds)) == 0


def test_a_real_forest(data_root: Path) -> None:
    module = import_model(data_root / "models" / "sklearn_randomforest.onnx")
    label, maps = module(torch.tensor([[5.1, 3.5, 1.4, 0.2]]))
    assert int(label[0]) == 0
    assert max(maps[0], key=maps[0].get) == 0
