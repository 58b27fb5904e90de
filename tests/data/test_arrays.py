"""Supported inputs in memory: kinds, dtypes, sharing, values, shapes, messages."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastnmf import NMF, files, nnls
from fastnmf.data import arrays
from fastnmf.data.arrays import Expected, as_numpy32, read_matrix
from fastnmf.errors import InvalidInput

EXPECTED = np.random.default_rng(0).integers(0, 60, (7, 5)).astype(np.float64)
TORCH_DTYPES = "float16 bfloat16 float32 float64 uint8 uint16 bool".split()
NUMPY_DTYPES = "f4 >f4 f8 >f8 longdouble >u2 u8 bool".split()


def read(A, **options):
    return read_matrix(A, "cpu", Expected(**options))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(arrays, "PART_ENTRIES", 11)


class Frame:
    """An object that only offers `__array__`."""

    def __array__(self, dtype=None, copy=None):
        return np.asarray(EXPECTED, dtype=dtype)


class Samples(Dataset):
    def __len__(self):
        return len(EXPECTED)

    def __getitem__(self, i):
        return torch.tensor(EXPECTED[i]), i


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.tensor(EXPECTED).split(3)


def refilled_buffer():
    buffer = np.empty((1, 5))
    for row in EXPECTED:
        buffer[0] = row
        yield buffer


TENSOR = torch.tensor(EXPECTED)
KINDS = {
    "tensor": TENSOR,
    "parameter": torch.nn.Parameter(TENSOR.clone()),
    "array": EXPECTED,
    "frame": Frame(),
    "nested list": EXPECTED.tolist(),
    "nested tuple of rows": tuple(map(tuple, EXPECTED)),
    "list of tensors": list(TENSOR.split(3)),
    "list of labelled": [(TENSOR[:4], "label"), [TENSOR[4:], 1, 2]],
    "list of rows": list(EXPECTED),
    "tuple of one": (EXPECTED,),
    "mixed batches": [EXPECTED[:1], TENSOR[1:3], Frame().__array__()[3:]],
    "empty batch": [TENSOR[:0], TENSOR],
    "generator": (batch for batch in TENSOR.split(2)),
    "refilled buffer": refilled_buffer(),
    "loader": DataLoader(TensorDataset(TENSOR), batch_size=3),
    "loader of tensors": DataLoader(TENSOR, batch_size=3),
    "samples": Samples(),
    "loader of samples": DataLoader(Samples(), batch_size=2),
    "stream": Stream(),
    "TensorDataset": TensorDataset(TENSOR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_read_matrix_gives_the_matrix(kind, small_parts):
    rows = read(KINDS[kind])
    assert rows.dtype == torch.float64
    assert not rows.requires_grad
    assert rows.shape == (7, 5)
    np.testing.assert_array_equal(rows.numpy(), EXPECTED)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_read_matrix_computes_in_float_of_tensor(dtype, small_parts):
    A = TENSOR.to(getattr(torch, dtype))
    rows = read(A)
    assert rows.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert torch.equal(rows, A.to(rows.dtype))


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_read_matrix_computes_in_float_of_array(dtype, small_parts):
    A = EXPECTED.astype(dtype)
    rows = read(A)
    wide = dtype in ("f8", ">f8", "longdouble")
    assert rows.dtype == (torch.float64 if wide else torch.float32)
    np.testing.assert_array_equal(rows.numpy(), A.astype("f8" if wide else "f4"))


@pytest.mark.parametrize(
    ("given", "asked", "computed"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_read_matrix_promotes_to_dtype(given, asked, computed):
    assert read(TENSOR.to(given), dtype=asked).dtype == computed


def test_read_matrix_computes_in_float64_when_one_batch_is():
    assert read([TENSOR[:3].float(), TENSOR[3:]]).dtype == torch.float64


VIEWS = {
    "whole": lambda A: A,
    "rows skipped": lambda A: A[::2],
    "columns cut": lambda A: A[:, 1:4],
    "one row": lambda A: A[2:3],
}


@pytest.mark.parametrize(
    ("view", "dtype", "as_array"),
    [
        *((view, torch.float32, False) for view in VIEWS),
        ("rows skipped", torch.float64, True),
        ("one row", torch.float32, True),
    ],
)
def test_read_matrix_does_not_copy_when_rows_are_contiguous(view, dtype, as_array):
    A = VIEWS[view](TENSOR.to(dtype, copy=True))
    rows = read(A.numpy() if as_array else A)
    assert rows.data_ptr() == A.data_ptr()
    assert rows.stride() == A.stride()


@pytest.mark.parametrize(
    "A",
    [TENSOR.T.contiguous().T, TENSOR[:, ::2], TENSOR[:1].expand(4, 5)],
    ids=["transposed", "columns skipped", "repeated row"],
)
def test_read_matrix_makes_rows_contiguous(A):
    rows = read(A)
    assert rows.stride(1) == 1
    assert torch.equal(rows, A)


@pytest.mark.parametrize(
    "view",
    [lambda A: A[::-1], lambda A: A[:, ::-1], np.asfortranarray],
    ids=["rows backwards", "columns backwards", "fortran"],
)
def test_read_matrix_takes_arrays_of_any_strides(view):
    np.testing.assert_array_equal(read(view(EXPECTED)).numpy(), view(EXPECTED))


@pytest.mark.parametrize(("dtype", "narrow"), [("f4", False), ("f2", True), ("i4", True)])
def test_read_matrix_takes_single_rows_of_any_strides(dtype, narrow):
    """They are contiguous, as NumPy sees it, and no strides for torch."""
    backwards = EXPECTED.astype(dtype)[::-1]
    records = np.zeros(7, dtype=[("label", "i1"), ("vector", dtype, (5,))])
    records["vector"] = backwards
    for A in (backwards, records["vector"]):
        np.testing.assert_array_equal(read(A, narrow=narrow).numpy(), backwards)
        np.testing.assert_array_equal(
            read([A[i : i + 1] for i in range(7)], narrow=narrow).numpy(), backwards
        )


def test_read_matrix_takes_field_of_records():
    records = np.zeros(6, dtype=[("label", "i1"), ("vector", "f4", (3,))])
    records["vector"] = EXPECTED[:6, :3]
    np.testing.assert_array_equal(read(records["vector"]).numpy(), EXPECTED[:6, :3])


def test_read_matrix_copies_read_only_array_without_a_warning():
    A = EXPECTED.astype(np.float32)
    A.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = read(A)
    rows.add_(1)
    np.testing.assert_array_equal(A, EXPECTED)


@pytest.mark.parametrize(("dtype", "mode"), [("f4", "r"), ("f4", "c"), ("f2", "r"), (">f8", "r")])
def test_read_matrix_reads_memory_map_in_parts(dtype, mode, tmp_path, monkeypatch, small_parts):
    np.save(tmp_path / "A.npy", EXPECTED.astype(dtype))
    A = np.load(tmp_path / "A.npy", mmap_mode=mode)
    sizes = []
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda a: (sizes.append(len(a)), from_numpy(a))[1])
    rows = read(A)
    assert sizes == [2, 2, 2, 1]
    np.testing.assert_array_equal(rows.numpy(), EXPECTED)


def spoilt(*entries):
    A = TENSOR.float().clone()
    for i, j, value in entries:
        A[i, j] = value
    return A


NAN, INF = float("nan"), float("inf")
BAD_VALUES = {
    "negative": (
        [(4, 1, -0.25), (4, 3, -1), (6, 0, -2)],
        "A has 3 negative entries, the first at row 4, column 1: −0.25; NMF needs A ≥ 0",
    ),
    "one negative": ([(6, 4, -3)], "A has 1 negative entry, the first at row 6, column 4: −3;"),
    "nan": (
        [(3, 2, NAN), (5, 0, NAN)],
        "A has 2 nan or inf entries, the first at row 3, column 2: nan; NMF needs finite numbers",
    ),
    "inf": ([(0, 4, INF)], "A has 1 nan or inf entry, the first at row 0, column 4: inf;"),
    "−inf": ([(1, 0, -INF)], "A has 1 nan or inf entry, the first at row 1, column 0: −inf;"),
    "nan and negative": ([(0, 0, -1), (2, 2, NAN)], "A has 1 nan or inf entry, the first at row 2"),
}
FORMS = {
    "tensor": lambda A: A,
    "array": lambda A: A.numpy(),
    "float16": lambda A: A.half(),
    "strided": lambda A: A.T.contiguous().T,
    "batches": lambda A: A.split(2),
    "generator": lambda A: (batch.numpy() for batch in A.split(2)),
    "loader": lambda A: DataLoader(TensorDataset(A), batch_size=3),
}


# all values in one form, and all forms, in which rows are counted and dtypes are widened
@pytest.mark.parametrize(
    ("bad", "form"),
    [
        *((bad, "tensor") for bad in BAD_VALUES),
        *(("negative", form) for form in FORMS if form != "tensor"),
        ("nan and negative", "generator"),
    ],
)
def test_bad_values_are_refused_with_the_first_place(bad, form, small_parts):
    entries, message = BAD_VALUES[bad]
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read(FORMS[form](spoilt(*entries)))


@pytest.mark.parametrize("value", [NAN, -INF])
def test_signed_data_may_be_negative_but_not_infinite(value):
    assert read(-TENSOR, signed=True).min() < 0
    with pytest.raises(InvalidInput, match="A has 1 nan or inf entry"):
        read(-spoilt((2, 2, value)), signed=True)


@pytest.mark.parametrize(
    ("A", "hint"),
    [(spoilt((0, 0, -1)), "A.clamp(min=0)"), (spoilt((0, 0, -1)).numpy(), "A.clip(min=0)")],
    ids=["tensor", "array"],
)
def test_negative_values_are_refused_with_a_cure_that_works(A, hint):
    with pytest.raises(InvalidInput, match=re.escape(hint)):
        read(A)
    read(eval(hint, {"A": A}))


BAD_SHAPES = {
    "1-D": (TENSOR[0], "A has shape (5,); it must be (n, d): a single row is A[None]"),
    "0-D": (torch.tensor(3.0), "A has shape (); it must be (n, d)"),
    "3-D": (TENSOR[None], "A has shape (1, 7, 5); it must be (n, d): with features last, A.resh"),
    "no rows": (TENSOR[:0], "A has no rows, its shape is (0, 5)"),
    "no features": (EXPECTED[:, :0], "A has no features, its shape is (7, 0)"),
    "only empty batches": ([TENSOR[:0]], "A has no rows"),
    "empty list": ([], "A gave no batches"),
    "empty loader": (DataLoader([]), "A gave no batches"),
    "widths": ([TENSOR, TENSOR, TENSOR[:, :3]], "batch 2 of A has 3 columns, the batches before"),
    "3-D batch": ([TENSOR, TENSOR[None]], "batch 1 of A has shape (1, 7, 5)"),
    "1-D in loader": (DataLoader(torch.ones(4)), "batch 0 of A has shape (1,)"),
    "meta": (torch.ones(2, 2, device="meta"), "A is on the meta device"),
}


@pytest.mark.parametrize("shape", BAD_SHAPES)
def test_bad_shapes_are_refused(shape):
    A, message = BAD_SHAPES[shape]
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read(A)


def test_read_matrix_refuses_generator_that_was_read_before():
    generator = (batch for batch in TENSOR.split(2))
    read(generator)
    with pytest.raises(InvalidInput, match="generator that has been read before"):
        read(generator)


BAD_TYPES = {
    "None": (None, "A is None; give a tensor"),
    "path": ("A.npy", "A is a str; give .*read_matrix"),
    "dict": ({"A": TENSOR}, "A is a dict"),
    "complex tensor": (TENSOR.to(torch.complex64), "complex64; it must hold real numbers"),
    "complex array": (EXPECTED.astype(complex), "complex128; it must hold real numbers"),
    "object array": (np.array([[None, 1.0]]), "dtype object"),
    "dates": (np.zeros((2, 2), "M8[s]"), "it must hold real numbers"),
    "sparse tensor": (TENSOR.to_sparse(), r"A is sparse \(torch.sparse_coo\); give A.to_dense\(\)"),
    "masked array": (np.ma.masked_equal(EXPECTED, 0), r"A is a masked array; give A.filled\(0\)"),
    "nested list of text": ([["a", "b"], ["c", "d"]], "A has dtype <U1; it must hold real"),
    "deep list": ([TENSOR, [[1.0, 2.0]]], "batch 1 of A is a list; a batch must be"),
    "batch of text": ([TENSOR, "text"], "batch 1 of A is a str"),
    "dict batches": ([{"x": TENSOR}], "batch 0 of A is a dict"),
    "empty tuple": ([()], "batch 0 of A is a tuple"),
    "sparse batch": ([TENSOR, TENSOR.to_sparse()], "batch 1 of A is sparse"),
}


@pytest.mark.parametrize("kind", BAD_TYPES)
def test_what_is_no_matrix_is_refused(kind):
    A, message = BAD_TYPES[kind]
    with pytest.raises(TypeError, match=message):
        read(A)


def test_scipy_sparse_is_refused_with_a_hint():
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    with pytest.raises(TypeError, match=r"A is sparse \(\w+\); give A.toarray\(\)"):
        read(sparse.csr_matrix(EXPECTED))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 9}, "A has 5 features, the dictionary has 9; give A with 9 columns"),
        ({"features": 7}, "A has 5 features, the dictionary has 7; A.T fits"),
        (
            {"features": 9, "name": "Z", "columns": "concepts"},
            "Z has 5 concepts, the dictionary has 9; give Z with 9 columns",
        ),
    ],
)
def test_other_width_than_the_dictionary_is_refused(options, message):
    assert read(TENSOR, features=5).shape[1] == 5
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read(TENSOR, **options)


def test_messages_speak_of_codes_when_named_so():
    with pytest.raises(InvalidInput, match=r"Z has 1 negative .* NMF needs Z ≥ 0 .*Z\.clamp"):
        read(spoilt((0, 0, -1)), name="Z")


def test_read_matrix_moves_to_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for A in (TENSOR.half(), EXPECTED, list(TENSOR.split(2))):
        rows = read_matrix(A, "cuda")
        assert rows.device.type == "cuda"
        np.testing.assert_array_equal(rows.cpu().numpy(), EXPECTED)
    again = read_matrix(rows, "cuda")
    assert again.data_ptr() == rows.data_ptr()


def test_as_numpy32_returns_float32_array_itself():
    x = EXPECTED.astype(np.float32)
    assert as_numpy32(x) is x


@pytest.mark.parametrize(
    "x",
    [
        TENSOR,
        TENSOR.bfloat16(),
        torch.nn.Parameter(TENSOR.clone()),
        EXPECTED,
        EXPECTED.tolist(),
        Frame(),
        DataLoader(TensorDataset(TENSOR), batch_size=2),
    ],
    ids=lambda x: type(x).__name__,
)
def test_as_numpy32_gives_float32_array(x):
    array = as_numpy32(x, columns=5)
    assert array.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(array, EXPECTED)


def test_as_numpy32_does_not_look_at_values():
    assert np.isnan(as_numpy32(spoilt((0, 0, NAN), (1, 1, -1)))).sum() == 1


@pytest.mark.parametrize(
    ("x", "columns", "message"),
    [
        (TENSOR[0], None, r"x has shape \(5,\); it must be \(n, d\)"),
        (EXPECTED[None], None, r"x has shape \(1, 7, 5\)"),
        (EXPECTED, 4, "x has 5 columns; it must have 4"),
    ],
)
def test_as_numpy32_refuses_other_shapes(x, columns, message):
    with pytest.raises(InvalidInput, match=message):
        as_numpy32(x, "x", columns)


IMAGES = np.random.default_rng(0).random((5, 3, 4, 6), np.float32)
TENSORS = torch.tensor(IMAGES)
# how images are given, and the call that makes rows of their pixels
OF_ARRAYS, OF_TENSORS = "transpose(0, 2, 3, 1)", "permute(0, 2, 3, 1)"
WAYS = {
    "fit": (lambda _: NMF(2).fit(torch.tensor(IMAGES)), OF_TENSORS),
    "fit of an array": (lambda _: NMF(2).fit(IMAGES), OF_ARRAYS),
    "fit of batches": (lambda _: NMF(2).fit([torch.tensor(IMAGES)]), OF_TENSORS),
    "partial_fit": (lambda _: NMF(2).partial_fit(torch.tensor(IMAGES)), OF_TENSORS),
    "encode": (lambda _: NMF(2).load_dictionary(np.ones((2, 3))).encode(IMAGES), OF_ARRAYS),
    "nnls": (lambda _: nnls(torch.tensor(IMAGES), torch.ones(2, 3)), OF_TENSORS),
    **{
        f"fit of {suffix}": (lambda folder, suffix=suffix: NMF(2).fit(folder / f"A{suffix}"), "")
        for suffix in (".npy", ".safetensors")
    },
    **{
        f"read_matrix of {suffix}": (
            lambda folder, suffix=suffix: files.read_matrix(folder / f"A{suffix}"),
            "",
        )
        for suffix in (".npy", ".npz", ".pt", ".safetensors")
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_images_get_a_hint_for_either_place_of_their_channels(way, tmp_path):
    """The advice made the columns of an image the features."""
    np.save(tmp_path / "A.npy", IMAGES)
    np.savez(tmp_path / "A.npz", A=IMAGES)
    torch.save(torch.tensor(IMAGES), tmp_path / "A.pt")
    safetensors.torch.save_file({"A": torch.tensor(IMAGES)}, tmp_path / "A.safetensors")
    call, axes = WAYS[way]
    with pytest.raises(InvalidInput, match=r"shape \(5, 3, 4, 6\)") as raised:
        call(tmp_path)
    said = str(raised.value)
    assert ".reshape(-1, 6)" in said
    assert f"images (n, C, H, W), A.{axes}" in said
    assert ".reshape(-1, 3)" in said
    if axes:
        rows = eval(
            said.partition("(n, C, H, W), ")[2], {"A": IMAGES if axes == OF_ARRAYS else TENSORS}
        )
        assert tuple(rows.shape) == (120, 3)
        assert np.array_equal(np.asarray(rows[0]), IMAGES[0, :, 0, 0])
