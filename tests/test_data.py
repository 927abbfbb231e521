from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dns_onnx import sources
from dns_onnx.config import Preprocess
from dns_onnx.data import ArrayDataset, LazyDataset, batch_rows, batches, check_labels, split
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.preprocess import InputSpec, shifted, shifts

F32 = np.dtype(np.float32)
VECTOR = [InputSpec("x", F32, (None, 4))]
IMAGE = [InputSpec("img", F32, (None, 1, 28, 28))]
AS_IS = Preprocess()


def rows(n: int = 10) -> ArrayDataset:
    x = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    return ArrayDataset(VECTOR, {"x": x}, np.arange(n), AS_IS, "rows")


def test_split_is_disjoint_complete_and_seeded() -> None:
    teaching, held = split(rows(100), 0.25, seed=3)
    a = set(teaching.take(np.arange(75)).labels)
    b = set(held.take(np.arange(25)).labels)
    assert len(a) == 75
    assert a | b == set(range(100))
    again = split(rows(100), 25, seed=3)[1]
    assert np.array_equal(held.take(np.arange(25)).labels, again.take(np.arange(25)).labels)
    other = split(rows(100), 25, seed=4)[1]
    assert set(other.take(np.arange(25)).labels) != b


def test_split_edges() -> None:
    assert split(rows(), 0, seed=0)[1] is None
    with pytest.raises(DataError, match="fewer than the 10 training rows"):
        split(rows(), 10, seed=0)


def test_batches_cover_all_rows_in_order() -> None:
    parts = [b.labels.tolist() for b in batches(rows(), 4)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert sum(len(b) for b in batches(rows(), 4, limit=6)) == 6


def test_sequential_batches_wrap_around() -> None:
    assert batch_rows(10, 4, 2, None).tolist() == [8, 9, 0, 1]


def test_shuffled_batches_visit_every_row_once_an_epoch() -> None:
    seen = np.concatenate([batch_rows(10, 4, i, seed=5) for i in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert np.array_equal(batch_rows(10, 4, 3, seed=5), seen[12:16])


def test_shifts_move_whole_images_by_at_most_the_given_pixels() -> None:
    image = np.zeros((64, 1, 7, 7), np.float32)
    image[:, 0, 3, 3] = 1
    moved = shifted(image, 2, shifts(64, 2, np.random.default_rng(0)))
    assert moved.shape == image.shape
    places = {tuple(np.argwhere(m[0])[0]) for m in moved}
    assert {p for place in places for p in place} == {1, 2, 3, 4, 5}
    assert all(m.sum() == 1 for m in moved)


def test_preprocessing_scales_normalises_and_reorders() -> None:
    p = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), layout="nhwc")
    spec = [InputSpec("x", F32, (None, 3, 2, 2))]
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    got = ArrayDataset(spec, {"x": images}, None, p, "t").take(np.array([1])).inputs["x"]
    want = (images[1:] * 0.5 - [1, 2, 3]) / [1, 2, 4]
    np.testing.assert_allclose(got, np.moveaxis(want, -1, 1), rtol=1e-6)
    assert got.dtype == np.float32


def test_rows_are_reshaped_where_only_axes_differ() -> None:
    data = ArrayDataset(IMAGE, {"img": np.zeros((2, 784), np.uint8)}, None, AS_IS, "t")
    assert data.take(np.arange(2)).inputs["img"].shape == (2, 1, 28, 28)
    wrong = ArrayDataset(IMAGE, {"img": np.zeros((2, 27, 27), np.uint8)}, None, AS_IS, "d.npz")
    with pytest.raises(DataError, match=r"d\.npz: 'img': expected rows of shape \[1, 28, 28\]"):
        wrong.take(np.arange(2))


def test_fractions_do_not_become_tokens_without_a_word() -> None:
    tokens = [InputSpec("ids", np.dtype(np.int64), (None, 2))]
    whole = ArrayDataset(tokens, {"ids": np.array([[3.0, 4.0]])}, None, AS_IS, "t")
    assert whole.take(np.arange(1)).inputs["ids"].tolist() == [[3, 4]]
    with pytest.raises(DataError, match=r"d\.npz: 'ids': expected int64 rows, got float64 with"):
        ArrayDataset(tokens, {"ids": np.array([[3.0, 4.5]])}, None, AS_IS, "d.npz").take(
            np.arange(1)
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_name_their_row(bad: float) -> None:
    x = np.zeros((5, 4), np.float32)
    x[3, 1] = bad
    with pytest.raises(DataError, match="NaN or infinity in row 3"):
        ArrayDataset(VECTOR, {"x": x}, None, AS_IS, "t")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "expected an array `labels`, got none"),
        (np.array([0, 1, 10]), r"expected 0 to 9 .*got 10 in row 2"),
        (np.array([0, -1]), r"got -1 in row 1; train\.ignore_label names"),
        (np.array([0.0, 1.0]), "whole numbers"),
        (np.eye(10, dtype=np.int64), r"shape \[N\]"),
    ],
)
def test_labels_are_checked(labels: np.ndarray | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_labels(labels, 10, "d.npz", ignore=255)


def test_the_label_that_counts_nowhere_and_maps_of_labels_pass() -> None:
    check_labels(np.array([0, 255, 9]), 10, "d.npz", ignore=255)
    check_labels(np.full((2, 3, 3), 255), 10, "d.npz", ignore=255, maps=True)
    with pytest.raises(DataError, match="got 10 in row 1"):
        check_labels(np.array([[0, 9], [255, 10]]), 10, "d.npz", ignore=255, maps=True)


def test_row_counts_must_agree() -> None:
    with pytest.raises(DataError, match="equally many rows"):
        ArrayDataset(VECTOR, {"x": np.zeros((3, 4))}, np.zeros(2, np.int64), AS_IS, "t")
    with pytest.raises(DataError, match="expected arrays named"):
        ArrayDataset(VECTOR, {"y": np.zeros((3, 4)), "z": np.zeros(3)}, None, AS_IS, "t")


def test_one_array_for_one_input_needs_no_name() -> None:
    data = ArrayDataset(VECTOR, {"images": np.ones((3, 4))}, None, AS_IS, "t")
    assert list(data.take(np.arange(1)).inputs) == ["x"]


# ---------------------------------------------------------------- DATA arguments


def load(spec: str, specs: list[InputSpec] = VECTOR, role: str = "train"):
    return sources.load(spec, specs, AS_IS, role)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4), np.float32), labels=np.array([0, 1, 2]))
    data = load(f"{tmp_path}/d.npz?scale=0.5")
    batch = data.take(np.array([2]))
    assert batch.labels.tolist() == [2]
    assert np.all(batch.inputs["x"] == 0.5)


def test_folder_of_shards(tmp_path: Path) -> None:
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", x=np.full((2, 4), i, np.float32), labels=np.full(2, i))
    assert load(str(tmp_path)).take(np.arange(4)).labels.tolist() == [0, 0, 1, 1]


def test_folder_of_onnx_test_data_sets(tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        tensor = numpy_helper.from_array(np.full((1, 4), i, np.float32))
        onnx.save_tensor(tensor, folder / "input_0.pb")
    data = load(str(tmp_path))
    assert len(data) == 3
    assert data.take(np.array([2])).inputs["x"].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_idx_files(tmp_path: Path, zipped: bool) -> None:
    def write(name: str, array: np.ndarray) -> None:
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        body = header + array.astype(np.uint8).tobytes()
        path = tmp_path / (name + ".gz" if zipped else name)
        path.write_bytes(gzip.compress(body) if zipped else body)

    for prefix, count in (("train", 5), ("t10k", 3)):
        write(f"{prefix}-images-idx3-ubyte", np.full((count, 28, 28), 7))
        write(f"{prefix}-labels-idx1-ubyte", np.arange(count))
    spec = f"mnist:{tmp_path}"
    assert len(load(spec, IMAGE)) == 5
    assert len(load(spec, IMAGE, "eval")) == 3
    assert len(load(f"{spec}?split=train", IMAGE, "eval")) == 5
    assert len(load(f"{spec}?split=test", IMAGE, "val")) == 3
    with pytest.raises(DataError, match=r"\?split=train or \?split=test"):
        load(spec, IMAGE, "val")
    assert load(spec, IMAGE).take(np.array([4])).labels.tolist() == [4]


def test_test_data_sets_with_states_and_of_any_length(tmp_path: Path) -> None:
    specs = [InputSpec("x", F32, (None, None)), InputSpec("state", F32, (2, None, 3), 1),
             InputSpec("rate", np.dtype(np.int64), (), None)]  # fmt: skip
    for i, length in enumerate((4, 4, 6)):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        arrays = np.full((1, length), i, np.float32), np.full((2, 1, 3), i, np.float32)
        for k, array in enumerate((*arrays, np.array(8000))):
            onnx.save_tensor(numpy_helper.from_array(array), folder / f"input_{k}.pb")
    data = load(str(tmp_path), specs)
    batch = data.take(np.array([0, 1]))
    assert [x.shape for x in batch.inputs.values()] == [(2, 4), (2, 2, 3), (1,)]
    assert data.take(np.array([2])).inputs["x"].shape == (1, 6)
    with pytest.raises(DataError, match=r"expected rows of one shape .*data\.batch = 1"):
        data.take(np.array([1, 2]))


def test_whole_inputs_are_given_once_or_by_row() -> None:
    specs = [*VECTOR, InputSpec("cache", F32, (2, 1, 3), None)]
    x, caches = np.zeros((5, 4)), np.arange(30.0).reshape(5, 2, 1, 3)
    once = ArrayDataset(specs, {"x": x, "cache": caches[0]}, None, AS_IS, "t")
    assert once.take(np.arange(3)).inputs["cache"].shape == (1, 2, 1, 3)
    each = ArrayDataset(specs, {"x": x, "cache": caches}, None, AS_IS, "t")
    assert each.take(np.array([4])).inputs["cache"].ravel()[0] == 24
    same = ArrayDataset(specs, {"x": x, "cache": np.repeat(caches[:1], 5, 0)}, None, AS_IS, "t")
    assert len(same.take(np.arange(5)).inputs["cache"]) == 1


def test_names_that_differ_are_all_listed(tmp_path: Path) -> None:
    specs = [*VECTOR, InputSpec("mask", F32, (None, 4))]
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4)), masks=np.ones((3, 4)), labels=np.ones(3, int))
    message = r"expected arrays named \['x', 'mask'\], got \['labels', 'masks', 'x'\]; name each"
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "d.npz"), specs)


def test_arrays_beside_the_inputs_are_targets(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz", x=np.ones((3, 4)), boxes=np.ones((3, 2)), names=np.array(["a"] * 3)
    )
    batch = load(str(tmp_path / "d.npz")).take(np.arange(2))
    assert {n: t.shape for n, t in batch.targets.items()} == {"boxes": (2, 2)}


MODULE = """
import numpy as np
class Rows:
    def __len__(self): return 3
    def __getitem__(self, i): return np.full(4, i, np.float32), i
def dataset(): return Rows()
def stream():
    for i in range(3):
        yield np.full((2, 4), i, np.float32), np.full(2, i)
def named(): return [{"x": np.zeros((2, 4), np.float32), "labels": np.array([1, 0])}]
def nothing(): return []
def wrong(): return 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mydata_for_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mydata_for_test", raising=False)
    return "mydata_for_test"


def test_labels_of_text_are_not_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4)), labels=np.array(["cat", "dog", "cat"]))
    with pytest.raises(DataError, match=r"'labels': expected rows of numbers, got <U3"):
        load(str(tmp_path / "d.npz"))


def test_torch_dataset_is_read_row_by_row(module: str) -> None:
    data = load(f"{module}:dataset")
    assert isinstance(data, LazyDataset)
    batch = data.take(np.array([2, 0]))
    assert batch.labels.tolist() == [2, 0]
    assert batch.inputs["x"][:, 0].tolist() == [2, 0]


def test_iterables_of_batches(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(f"{module}:stream").take(np.arange(6)).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert load(f"{module}:named").take(np.arange(2)).labels.tolist() == [1, 0]
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 10)
    with pytest.raises(DataError, match="torch Dataset"):
        load(f"{module}:stream")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.npz", "no such file"),
        ("absent", "expected an .npz file, a folder, mnist:DIR"),
        ("no_such_module_here:f", "expected an importable"),
        ("mydata_for_test:absent", "expected an importable"),
        ("mydata_for_test:nothing", "at least one batch"),
        ("mydata_for_test:wrong", "expected a torch Dataset or batches"),
        ("mnist:absent", "expected train-images-idx3-ubyte"),
        ("mnist:.?split=val", "expected train or test"),
        ("d.npz?scale=x", "scale: expected numbers"),
        (".", "expected .npz files, test_data_set_"),
    ],
)
def test_bad_data_arguments(module: str, spec: str, message: str) -> None:
    assert module
    with pytest.raises(DataError, match=message):
        load(spec)


def test_unknown_option_names_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scal: unknown key; allowed here: scale, mean"):
        load(f"{tmp_path}/d.npz?scal=2")


def test_broken_npz(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"d\.npz: expected an \.npz archive"):
        load(str(tmp_path / "d.npz"))
