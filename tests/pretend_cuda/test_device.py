"""The pretended device itself: it does what a CUDA device does, and finds what it is meant to."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

from pretend_cuda import Card, OutOfMemory, Unordered, on_cuda, on_host, pretend

DRAWN = torch.arange(20, dtype=torch.float32).view(4, 5) / 7


def test_tensors_say_that_they_are_on_the_device(device):
    X = on_cuda(DRAWN)
    assert X.is_cuda
    assert X.device == torch.device("cuda", 0) == torch.empty(0, device="cuda").device
    assert torch.tensor([1.0, 2.0], device="cuda").is_cuda
    assert X.new_tensor(3.0).is_cuda
    assert DRAWN.cuda().is_cuda
    # no copy, as its device is that with the number 0
    assert X.to("cuda") is X
    assert not X.cpu().is_cuda
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        X.numpy()


@pytest.mark.parametrize(
    "compute",
    [
        lambda X: X[1:, 2],
        lambda X: X[..., None, 1:3],
        lambda X: X[X > 1],
        lambda X: X[torch.tensor([2, 0])],
        lambda X: X.split(3)[1] @ X.T,
        lambda X: torch.linalg.vector_norm(X, dim=0),
        lambda X: X.clone().fill_(2)[0],
        lambda X: copy.deepcopy(X),
        lambda X: X.double().sum(0, dtype=torch.float64),
        lambda X: torch.nn.Parameter(X).square(),
    ],
)
def test_operations_give_what_the_cpu_does(compute, device):
    with torch.no_grad():
        given, expected = compute(on_cuda(DRAWN)), compute(DRAWN)
    assert given.is_cuda
    assert torch.equal(on_host(given), expected)
    assert given.stride() == expected.stride()


def test_writes_reach_the_memory_that_views_share(device):
    X = on_cuda(DRAWN)
    row, X[0] = X[1], 3.0
    row.mul_(2)
    X[2, X[2] > 2] = torch.tensor(-1.0)
    expected = DRAWN.clone()
    expected[0], expected[1] = 3.0, 2 * DRAWN[1]
    expected[2, DRAWN[2] > 2] = -1
    assert torch.equal(on_host(X), expected)


def test_memory_that_is_not_written_holds_nan(device):
    assert on_host(torch.empty(3, device="cuda")).isnan().all()
    assert on_host(on_cuda(DRAWN).new_empty(3)).isnan().all()


MIXED = {
    "product": lambda X, Y: X @ Y.T,
    "sum": lambda X, Y: X + Y,
    "number on the device": lambda X, Y: Y * X[0, 0],
    "in place": lambda X, Y: X.add_(Y),
    "in place on the host": lambda X, Y: Y.add_(X),
    "out": lambda X, Y: torch.mul(X, X, out=torch.empty(4, 5)),
    "cat": lambda X, Y: torch.cat((X, Y)),
    "stack of numbers": lambda X, Y: torch.stack((X[0, 0], torch.tensor(1.0))),
    "foreach": lambda X, Y: torch._foreach_add([X, Y], [X, X]),
    "where": lambda X, Y: torch.where(X > 1, X, Y),
    "index of the host": lambda X, Y: Y[(X[:, 0] > 1).long()],
    "generator": lambda X, Y: torch.rand(3, device="cuda", generator=torch.Generator()),
}


@pytest.mark.parametrize("mix", MIXED)
def test_mixed_devices_raise(mix, device):
    with pytest.raises(RuntimeError, match=r"cuda.*cpu"):
        MIXED[mix](on_cuda(DRAWN), DRAWN.clone())


@pytest.mark.parametrize(
    "mix",
    [
        lambda X: X + torch.tensor(2.0),
        lambda X: X[torch.tensor([1, 0])],
        lambda X: torch.where(X > 1, X, torch.tensor(2.0)),
        lambda X: torch._foreach_mul([X, X], torch.tensor(2.0))[0],
        lambda X: X.copy_(torch.ones(4, 5)),
    ],
)
def test_what_torch_allows_to_mix_does_not_raise(mix, device):
    assert mix(on_cuda(DRAWN)).is_cuda


WAITING = {
    "item": lambda X: X.sum().item(),
    "float": lambda X: float(X[0, 0]),
    "if": lambda X: bool((X > 1).any()),
    "tolist": lambda X: X.tolist(),
    "cpu": lambda X: X.cpu(),
    "equal": lambda X: torch.equal(X, X),
    "mask": lambda X: X[X > 1],
    "write by a mask": lambda X: X.__setitem__(X > 1, on_cuda(torch.zeros(12))),
    "nonzero": lambda X: X.nonzero(),
    "unique": lambda X: X.unique(),
    "index of the host": lambda X: X[torch.tensor([1])],
    "numbers to the device": lambda X: torch.tensor([1.0], device="cuda"),
    "eigenvectors": lambda X: torch.linalg.eigh(X @ X.T),
    "synchronize": lambda X: torch.cuda.synchronize(),
    "stream": lambda X: torch.cuda.current_stream().synchronize(),
}
FREE = {
    "sum": lambda X: X.sum(),
    "write by a mask": lambda X: X.__setitem__(X > 1, 0.0),
    "scalar": lambda X: X.new_full((3,), 2.0) + 1,
    "index": lambda X: X[X[:, 0].argsort()],
    "shape": lambda X: X.reshape(-1).shape,
}


@pytest.mark.parametrize("do", WAITING)
def test_waits_are_counted_with_their_place(do, device):
    WAITING[do](on_cuda(DRAWN))
    assert len(device.waits) == 1
    assert "test_device.py:" in device.waits[0].where


@pytest.mark.parametrize("do", FREE)
def test_what_only_launches_is_no_wait(do, device):
    FREE[do](on_cuda(DRAWN))
    assert device.waits == []


def test_what_crosses_to_the_host_is_known(device):
    X = on_cuda(DRAWN)
    X[:2].cpu()
    X.sum().item()
    assert [(one.shape, one.bytes) for one in device.crossed] == [((2, 5), 40), ((), 4)]


def test_memory_counts_storages_once_until_they_are_freed(device):
    X = on_cuda(DRAWN)
    assert device.memory.live == 80
    view, other = X[1:].T, X + 1
    del X
    gc.collect()
    assert device.memory.live == 160
    del view, other
    gc.collect()
    assert (device.memory.live, device.memory.peak) == (0, 160)
    assert torch.cuda.max_memory_allocated() == 160
    assert torch.cuda.mem_get_info() == (Card().total_memory,) * 2


def test_a_full_device_raises():
    with pretend(Card(total_memory=100)):
        kept = on_cuda(DRAWN)
        with pytest.raises(OutOfMemory):
            kept + 1
        del kept
        on_cuda(DRAWN)


def test_generators_give_the_numbers_of_their_seed(device):
    drawn = [
        torch.randn(4, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert drawn[0].is_cuda
    first, again, other = map(on_host, drawn)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    generator = torch.Generator("cuda").manual_seed(5)
    assert generator.device.type == "cuda"
    assert generator.initial_seed() == 5
    state = generator.get_state()
    before = on_host(torch.rand(4, device="cuda", generator=generator))
    generator.set_state(state)
    assert torch.equal(on_host(torch.rand(4, device="cuda", generator=generator)), before)


def test_manual_seed_seeds_the_device(device):
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(on_host(torch.rand(4, device="cuda")))
    assert torch.equal(*drawn)


def test_a_stream_must_wait_for_what_it_reads(device):
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        X = torch.ones(3, device="cuda")
        event = aside.record_event()
    with pytest.raises(Unordered, match="may not have written"):
        X + 1
    torch.cuda.current_stream().wait_event(event)
    X.add_(1)
    with torch.cuda.stream(aside), pytest.raises(Unordered, match="may not have written"):
        X.mul_(2)
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        X.mul_(2)
    torch.cuda.synchronize()


def test_an_event_covers_only_what_came_before_it(device):
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        event = aside.record_event()
        X = torch.ones(3, device="cuda")
    torch.cuda.current_stream().wait_event(event)
    with pytest.raises(Unordered):
        X + 1
    aside.synchronize()
    assert on_host(X + 1).tolist() == [2, 2, 2]
    torch.cuda.synchronize()


def test_what_another_stream_still_reads_must_not_be_overwritten(device):
    X, aside = torch.ones(3, device="cuda"), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        X.sum()
    with pytest.raises(Unordered, match="may not have read"):
        X.zero_()
    torch.cuda.synchronize()
    X.zero_()


def test_a_copy_to_the_host_is_read_after_its_event(device):
    X = on_cuda(DRAWN).to("cpu", non_blocking=True)
    assert device.waits == []
    with pytest.raises(Unordered):
        X.sum()
    torch.cuda.current_stream().record_event().synchronize()
    assert torch.equal(X, DRAWN)


def test_pinned_memory_is_not_overwritten_while_it_is_copied(device):
    host = torch.empty(4, 5, pin_memory=True)
    host.copy_(DRAWN)
    X = host.to("cuda", non_blocking=True)
    assert device.waits == []
    with pytest.raises(Unordered, match="may not have read"):
        host.zero_()
    torch.cuda.current_stream().record_event().synchronize()
    host.zero_()
    assert torch.equal(on_host(X), DRAWN)


def test_pinned_memory_that_numpy_overwrites_is_found_later():
    def overwrite():
        with pretend():
            host = DRAWN.pin_memory()
            host.to("cuda", non_blocking=True)
            host.numpy()[:] = 0

    with pytest.raises(Unordered, match="overwritten while it was copied"):
        overwrite()


def test_memory_that_another_stream_uses_is_not_freed():
    def use(records):
        with pretend():
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            with torch.cuda.stream(aside):
                X = torch.ones(3, device="cuda")
            here.wait_stream(aside)
            X + 1
            if records:
                X.record_stream(here)
            del X

    use(True)
    with pytest.raises(Unordered, match="was freed while stream 0 used it"):
        use(False)


def test_a_graph_repeats_what_was_captured(device):
    X, graph, aside = on_cuda(DRAWN), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        graph.capture_begin()
        assert torch.cuda.is_current_stream_capturing()
        X.add_(torch.ones_like(X))
        with pytest.raises(RuntimeError, match="capturing"):
            X.sum().item()
        graph.capture_end()
    assert torch.equal(on_host(X), DRAWN)
    for _ in range(2):
        graph.replay()
    assert torch.equal(on_host(X), DRAWN + 1 + 1)


def test_kernels_of_triton_run_on_the_device_only(device):
    from fastnmf.kernels.mu import mu_normal_

    def given(move):
        C, G = move(torch.rand(2, 3)), move(torch.ones(2, 2))
        F, to = move(torch.ones(2, 3)), move(torch.empty(2, 3))
        return F, C, G, to, move(torch.zeros(2, dtype=torch.float64))

    F, C, G, to, sums = given(on_cuda)
    mu_normal_(F, C, G, to, sums)
    assert torch.allclose(on_host(to), on_host(C) / 2)
    with pytest.raises(ValueError, match="cpu tensor"):
        mu_normal_(F, C.cpu(), G, to, sums)


def test_nothing_is_left_of_a_device():
    before = torch.cuda.is_available(), torch.Generator, torch.cuda.Stream
    with pretend():
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available(), torch.Generator, torch.cuda.Stream) == before
    with pytest.raises((RuntimeError, AssertionError)):
        torch.empty(1, device="cuda")
