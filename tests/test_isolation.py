"""Public calls are kept apart from the state of torch: the same bits in every surrounding, no
tensor on the default device, threads and forks."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import textwrap
import threading

import numpy as np
import pytest
import torch
from fits import nmf
from structure import MODULES, tree
from torch.utils._device import _device_constructors

from fastnmf import NMF, files, nnls
from fastnmf.solvers.registry import SOLVERS

N, D_IN, K = 90, 14, 4
GENERATOR = torch.Generator().manual_seed(0)
A = torch.rand(N, D_IN, generator=GENERATOR)
D = torch.rand(K, D_IN, generator=GENERATOR)
Z = torch.rand(N, K, generator=GENERATOR)
SIGNED = torch.randn(K, D_IN, generator=GENERATOR)


def fit(folder, data=A, solver="hals", max_iter=12, run=None, **options):
    model = nmf(K, solver=solver, seed=0, tol=0, **options)
    codes, dictionary = model.fit(data, max_iter, **(run or {}))
    return [dictionary] if codes is None else [codes, dictionary]


def fit_files(folder):
    for number, rows in enumerate(A.split(40)):
        np.save(folder / f"A{number}.npy", rows.numpy())
    return fit(folder, folder, chunk_rows=16, run={"codes": folder.parent / "Z.npy"})


def resume(folder):
    run = {"checkpoint": folder / "fit.safetensors"}
    fit(folder, run=run, checkpoint_seconds=0, accelerate=True)
    return fit(folder, max_iter=20, run=run | {"resume": True}, accelerate=True)


def learn_online(folder):
    model = NMF(K, seed=0)
    for batch in A.split(30):
        model.partial_fit(batch)
    return [model.D, model._gram, model._cross]


def encode(folder, solver="hals", data=A, **options):
    return [NMF(K, solver=solver).load_dictionary(D).encode(data, 20, **options)]


def encode_to_file(folder):
    return encode(folder, codes=folder / "Z.npy", Z0=Z.numpy())


def decode_to_file(folder):
    return [NMF(K).load_dictionary(D).decode(Z, out=folder / "B.npy")]


def save_and_load(folder):
    model = NMF(K, seed=0)
    model.fit(A, 5)
    model.save(folder / "model.safetensors")
    again = NMF.load(folder / "model.safetensors")
    other = NMF(K)
    other.load_state_dict(again.state_dict())
    return [again.D, other.encode(A)]


def files_of_all_kinds(folder):
    read = []
    for suffix in files.WRITERS:
        files.write_matrix(folder / f"A{suffix}", A)
        read.append(torch.from_numpy(np.asarray(files.read_matrix(folder / f"A{suffix}"))))
    return read


CALLS = {
    **{f"fit-{name}": lambda folder, name=name: fit(folder, solver=name) for name in SOLVERS},
    **{
        f"fit-{init}": lambda folder, init=init: fit(folder, init=init)
        for init in ("random", "nndsvda", "rows", "spread")
    },
    "fit-residual": lambda folder: fit(folder, form="residual"),
    "fit-given": lambda folder: fit(folder, init=(Z.numpy(), D.tolist())),
    "fit-float64": lambda folder: fit(folder, A.double(), accelerate=True),
    "fit-half": lambda folder: fit(folder, A.half()),
    "fit-revive": lambda folder: fit(folder, A[:, :3], init="rows", revive=True),
    "fit-penalties": lambda folder: fit(folder, alpha_Z=1e-3, l1_ratio=0.5, unit_norm=True),
    "fit-batches": lambda folder: fit(folder, iter(A.numpy()[i : i + 30] for i in (0, 30, 60))),
    "fit-no-codes": lambda folder: fit(folder, run={"codes": None}),
    "fit-files": fit_files,
    "resume": resume,
    "partial_fit": learn_online,
    **{f"encode-{name}": lambda folder, name=name: encode(folder, name) for name in SOLVERS},
    "encode-file": encode_to_file,
    "decode": lambda folder: [NMF(K).load_dictionary(D).decode(Z)],
    "decode-array": lambda folder: [NMF(K).load_dictionary(D.numpy()).decode(Z.numpy())],
    "decode-file": decode_to_file,
    **{
        f"nnls-{name}": lambda folder, name=name: [nnls(A, SIGNED, backend=name), nnls(A, D)]
        for name in ("auto", "torch")
    },
    "nnls-info": lambda folder: [nnls(A, D, return_info=True)[1].kkt],
    "init_random_z": lambda folder: [NMF(K, seed=0).init_random_z(A)],
    "init_random_d": lambda folder: [NMF(K, seed=0).init_random_d(A)],
    "init_nndsvda": lambda folder: [*NMF(K, seed=0).init_nndsvda(A)],
    "sanitize": lambda folder: [torch.from_numpy(NMF(K).sanitize_np_input(A.half()))],
    "save": save_and_load,
    "files": files_of_all_kinds,
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def other_threads_before():
    """Another number of threads, in which a call was made, and then the number before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before % 3 + 1)
        fit(None)
    finally:
        torch.set_num_threads(before)
    yield


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": deterministic,
    "threads": other_threads_before,
}
_expected = {}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("call", CALLS)
def test_surroundings_change_no_bit(call, surrounding, tmp_path):
    folders = [tmp_path / name / "A" for name in ("expected", "found")]
    for folder in folders:
        folder.mkdir(parents=True)
    if call not in _expected:
        _expected[call] = CALLS[call](folders[0])
    with SURROUNDINGS[surrounding]():
        found = CALLS[call](folders[1])
    for mine, theirs in zip(found, _expected[call], strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.device == theirs.device
        assert torch.equal(mine, theirs)


def test_no_tensor_is_made_on_the_default_device():
    """A call such as torch.zeros(3) would make it where torch.set_default_device says."""
    makers = {maker.__name__ for maker in _device_constructors()}
    found = []
    for module in MODULES:
        for call in ast.walk(tree(module)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("torch."):
                named = {keyword.arg for keyword in call.keywords}
                if call.func.attr in makers and not named & {"device", "out"}:
                    found.append(f"{module}:{call.lineno} {ast.unparse(call)}")
    assert found == []


def test_what_is_learned_in_inference_mode_is_of_use_outside_it():
    with torch.inference_mode():
        model, other = NMF(K, seed=0), NMF(K, seed=0)
        model.fit(A, 5)
        other.partial_fit(A)
        loaded = NMF(K).load_dictionary(D)
        loaded.load_state_dict(model.state_dict())
        B, Z0 = A[:5] + 0, model.encode(A[:5]) + 0
    other.partial_fit(B)
    for each in (model, other, loaded):
        X = A[:5].clone().requires_grad_()
        each.encode(X, Z0=Z0).sum().backward()
        assert X.grad.any()
        each.D.mul_(2)


def compiled(function, **options):
    torch.compiler.reset()
    return torch.compile(function, backend="eager", **options)


# those that take long to compile
THOROUGH = [pytest.param(c, marks=pytest.mark.thorough) for c in ("partial_fit", "nnls")]


@pytest.mark.parametrize("call", ["encode", "decode", "fit", *THOROUGH])
def test_compiled_code_breaks_its_graph_at_a_call(call):
    model = NMF(K, seed=0).load_dictionary(D)
    functions = {
        "encode": lambda X: model.encode(X) + 1,
        "decode": lambda X: model.decode(X[:, :K]) + 1,
        "fit": lambda X: NMF(K, seed=0).fit(X)[0] + 1,
        "partial_fit": lambda X: NMF(K, seed=0).partial_fit(X).D + 1,
        "nnls": lambda X: nnls(X, D) + 1,
    }
    function = functions[call]
    assert torch.equal(compiled(function)(A), function(A))


def test_compiled_module_has_the_gradient_of_encode():
    model, layer = NMF(K).load_dictionary(D), torch.nn.Linear(D_IN, D_IN)

    def function(X):
        return model.encode(layer(X).relu()).square().sum()

    gradients = [torch.autograd.grad(f(A), layer.weight)[0] for f in (function, compiled(function))]
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_whole_graph_is_refused_by_a_message_of_torch():
    model = NMF(K).load_dictionary(D)
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"\w+\.encode.*torch\.compiler\.disable"
    ):
        compiled(model.encode, fullgraph=True)(A)


def test_import_does_not_load_the_compiler(fresh):
    code = "import sys, torch; before = 'torch._dynamo' in sys.modules; from fastnmf import NMF\n"
    code += "NMF(2).fit(torch.rand(9, 5)); assert before or 'torch._dynamo' not in sys.modules"
    done = fresh(code)
    assert done.returncode == 0, done


FORKED = """
import logging, os, signal, sys, torch
{before}
import fastnmf
logging.basicConfig(level=logging.INFO)
torch.set_num_threads(3)
A = torch.rand(600, 300)
model = fastnmf.NMF(8, seed=0)
model.fit(A, 3)
child = os.fork()
if not child:
    # ends where it hangs
    signal.alarm(60)
    model.partial_fit(A)
    model.fit(A, 3)
    torch.rand(2000, 2000) @ torch.rand(2000, 2000)
    print("threads", torch.get_num_threads(), flush=True)
    os._exit(0)
print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not here")
def test_forked_process_computes_with_one_thread_and_says_so(fresh):
    done = fresh(FORKED.format(before=""))
    assert done.stdout == "threads 1\nended 0 3\n", done
    assert done.stderr.count("was forked") == 1


def test_process_forked_by_multiprocessing_before_the_import_has_one_thread(fresh):
    """There, its number does not tell that it was forked."""
    code = """
        import multiprocessing, os, signal, torch
        torch.set_num_threads(3)
        torch.rand(2000, 2000) @ torch.rand(2000, 2000)
        def run():
            signal.alarm(60)
            import fastnmf
            fastnmf.NMF(8).fit(torch.rand(600, 300), 3)
            print(torch.get_num_threads(), flush=True)
        child = multiprocessing.get_context("fork").Process(target=run)
        child.start()
        child.join()
        print(child.exitcode)
        """
    done = fresh(textwrap.dedent(code))
    assert done.stdout == "1\n0\n", done


def test_forked_process_waits_for_no_thread_of_its_parent(fresh):
    """A thread that changed the model when the process was forked does not run on in the child."""
    code = """
        import os, signal, threading, torch, fastnmf
        model, begun, ends = fastnmf.NMF(2), threading.Event(), threading.Event()
        def wait(iteration):
            begun.set()
            ends.wait(60)
        A = torch.rand(9, 5)
        thread = threading.Thread(target=model.fit, args=(A, 1), kwargs={"callback": wait})
        thread.start()
        begun.wait(60)
        child = os.fork()
        if not child:
            signal.alarm(60)
            model.fit(A, 1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        ends.set()
        thread.join()
        """
    done = fresh(textwrap.dedent(code))
    assert done.stdout == "0\n", done


def test_threads_that_share_a_model_lose_no_batch():
    model, left, errors = NMF(K, seed=0), list(A.repeat(3, 1).split(9)), []
    count = len(left)

    def learn():
        try:
            while left:
                with contextlib.suppress(IndexError):
                    model.partial_fit(left.pop())
                    model.encode(A)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=learn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (model.online_info_.batches, model.online_info_.rows) == (count, 3 * N)


def test_encode_does_not_wait_for_a_fit_of_another_thread():
    model = NMF(K, seed=0).load_dictionary(D)
    begun, ends = threading.Event(), threading.Event()

    def wait(iteration):
        begun.set()
        return not ends.wait(60)

    thread = threading.Thread(target=model.fit, args=(A, 1), kwargs={"callback": wait})
    thread.start()
    assert begun.wait(60)
    before = model.encode(A)
    ends.set()
    thread.join()
    assert torch.equal(before, NMF(K).load_dictionary(D).encode(A))


def test_callback_may_change_the_model_that_is_fitted():
    """A call within a call of the same thread does not wait."""
    model = NMF(K, seed=0)
    model.fit(A, 2, callback=lambda iteration: bool(model.load_dictionary(D)) and False)
    assert model.fit_info_.iterations == 2


def test_model_is_copied_and_pickled_while_another_thread_changes_it():
    model = NMF(K, seed=0).load_dictionary(D)
    copies = []
    model.fit(A, 1, callback=lambda _: copies.append(pickle.loads(pickle.dumps(model))))
    assert torch.equal(copies[0].D, D)
