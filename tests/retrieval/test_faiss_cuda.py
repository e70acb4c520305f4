"""FAISS on NVIDIA GPUs: tensors where they lie, torch's streams, several devices. Run by `make gpu`.

Each test names what it needs when that is absent: a GPU, a GPU build of FAISS (faiss-gpu), a second GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastprobe.kernels.topk as topk
from fastprobe.errors import InputError
from fastprobe.kernels.topk import choose_path, faiss_gpus, top_k
from fastprobe.retrieval.gallery import GalleryIndex

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def gpu(request):
    """The device, or the reason why this test did not run."""
    if not torch.cuda.is_available():
        pytest.skip(f"{request.node.name} needs an NVIDIA GPU; PyTorch sees none")


@pytest.fixture
def faiss(request, gpu):
    """A FAISS that uses the GPU."""
    if not faiss_gpus():
        pytest.skip(f"{request.node.name} needs a FAISS that sees the GPU: pip install faiss-gpu (instead of faiss-cpu)")
    return topk.load_faiss()


def unit(seed, n, d=64):
    x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def agree(found, want, atol=1e-5):
    """Equal lists, but where float32 cannot tell scores apart."""
    scores, rows = (np.asarray(torch.as_tensor(a).cpu()) for a in found)
    np.testing.assert_allclose(scores, want[0], atol=atol)
    assert (rows == want[1]).mean() > 0.999


@pytest.mark.parametrize(("n", "size", "k"), [(1, 1, 1), (1000, 144, 10), (777, 100_003, 100), (64, 1_000_000, 10)])
@pytest.mark.parametrize("path", ["torch", "groups", "auto"])
def test_exact_paths_on_the_gpu_find_what_the_cpu_finds(n, size, k, path):
    if path == "groups" and size < 32:
        path = "torch"
    q, g = unit(0, n), unit(1, size)
    agree(top_k(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), k, path=path), top_k(q, g, k, path="torch"))


@pytest.mark.parametrize(("n", "size", "k"), [(1, 1, 1), (1000, 144, 144), (777, 100_003, 100), (64, 1_000_000, 10)])
def test_faiss_on_tensors_finds_what_the_cpu_finds(faiss, n, size, k):
    q, g = unit(0, n), unit(1, size)
    scores, rows = top_k(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), k, path="faiss")
    assert scores.is_cuda and rows.is_cuda
    agree((scores, rows), top_k(q, g, k, path="torch"))


def test_faiss_on_tensors_is_gpu_index_flat_ip(faiss):
    q, g = unit(0, 500), unit(1, 20_000)
    index = faiss.GpuIndexFlatIP(topk.gpu_resources(faiss, 0), 64)
    index.add(g)
    agree(top_k(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), 10, path="faiss"), index.search(q, 10))


def test_equal_scores_go_by_row_on_the_gpu_too(faiss):
    rng = np.random.default_rng(0)
    q, g = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (50, 3000))
    want = np.argsort(-(q @ g.T), axis=1, kind="stable")
    for path in ("faiss", "torch", "groups"):
        for k in (1, 17, 200):
            found = top_k(torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda(), k, path=path)[1]
            assert np.array_equal(found.cpu().numpy(), want[:, :k]), path


def test_the_rule_takes_faiss_when_it_sees_the_gpu(faiss):
    assert choose_path(100, 10_000, 10, "cuda") == "faiss" and choose_path(100, 10_000, 5000, "cuda") == "torch"
    with pytest.raises(InputError, match="serves k below"):
        top_k(torch.ones(1, 4).cuda(), torch.ones(5000, 4).cuda(), 4000, path="faiss")


@pytest.mark.parametrize("path", ["faiss", "torch", "groups"])
def test_search_is_ordered_by_the_current_stream(request, path):
    """The gallery is written by slow work on a side stream, and searched on that stream with no synchronisation."""
    if path == "faiss" and not faiss_gpus():
        pytest.skip(f"{request.node.name} needs a FAISS that sees the GPU: pip install faiss-gpu (instead of faiss-cpu)")
    q, g = unit(0, 100), unit(1, 50_000)
    want = top_k(q, g, 10, path="torch")
    on, source = torch.from_numpy(q).cuda(), torch.from_numpy(g).cuda()
    slow = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(3):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            gallery = torch.zeros_like(source)
            for _ in range(20):
                slow = slow @ slow
                slow /= slow.norm()
            gallery.copy_(source)
            scores, rows = top_k(on, gallery, 10, path=path)
            gallery.zero_()  # what comes after on the stream must not reach the search
        stream.synchronize()
        agree((scores, rows), want)


def test_no_copy_of_the_gallery_is_made_on_the_gpu(faiss):
    q, g = torch.from_numpy(unit(0, 10)).cuda(), torch.randn(4_000_000, 64, device="cuda")
    top_k(q, g, 10, path="faiss")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    top_k(q, g, 10, path="faiss")
    assert torch.cuda.max_memory_allocated() - before < g.numel() and free - torch.cuda.mem_get_info()[0] < g.numel()


def test_a_gallery_on_several_devices(request):
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if len(devices) < 2:
        pytest.skip(f"{request.node.name} needs two NVIDIA GPUs; PyTorch sees {len(devices)}")
    q, g = unit(0, 300), unit(1, 200_001)
    index = GalleryIndex(g, devices=devices)
    agree(index.search(q, 20), top_k(q, g, 20, path="torch"))
    scores, rows = index.search(torch.from_numpy(q).to(devices[1]), 20)
    assert scores.device == torch.device(devices[1])
    agree((scores, rows), top_k(q, g, 20, path="torch"))
    on = torch.from_numpy(g).to(devices[1])
    agree(top_k(torch.from_numpy(q).to(devices[1]), on, 20), top_k(q, g, 20, path="torch"))


def test_a_gallery_in_parts_on_one_device():
    q, g = unit(0, 300), unit(1, 20_001)
    agree(GalleryIndex(g, devices=["cuda:0"] * 3).search(q, 20), top_k(q, g, 20, path="torch"))


def test_lists_of_a_run_through_faiss_on_the_gpu(faiss, tmp_path):
    import pyarrow.parquet as pq

    import fastprobe as fp
    from support.strategies import tables

    text, audio = tables(classes=20, clips=5)
    kept = {}
    for retrieval in ("fused", "faiss"):
        fp.permutation_test(
            text,
            audio,
            probe=fp.ProbeConfig(dim=8, steps=10),
            permutations=1,
            splits=2,
            backend="torch",
            device="cpu",
            retrieval=retrieval,
            out=tmp_path / retrieval,
        )
        kept[retrieval] = pq.read_table(tmp_path / retrieval / "retrieved.parquet").to_pandas()
    assert (kept["fused"].retrieved == kept["faiss"].retrieved).mean() > 0.999
    assert np.allclose(kept["fused"].score, kept["faiss"].score, atol=1e-5)
