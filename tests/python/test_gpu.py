"""The GPU part: what can be said without a GPU, then what needs one."""

import faiss
import numpy as np
import pytest
from conftest import METRICS, codes_of, gaussian, make_index, output_of

import faiss_turboquant
from faiss_turboquant import _device_arrays, gpu
from faiss_turboquant._gpu_extension import swig as gpu_extension

is_built = gpu_extension is not None
has_gpu = gpu.get_num_gpus() > 0

needs_build = pytest.mark.skipif(not is_built, reason="no GPU part")
needs_gpu = pytest.mark.skipif(not has_gpu, reason="no GPU")


# --------------------------------------------------------------- without a GPU


# A process that sees no GPU, if there is one, and no GPU part, if it is built.
HIDDEN = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
"""
NOT_BUILT = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: (
    None if name.endswith("_gpu") else find_spec(name, *args)
)
"""
MESSAGES = """
import faiss, faiss_turboquant as ft
print(ft.get_num_gpus())
index = faiss.IndexTurboQuant(8)
for call in (
    lambda: ft.StandardGpuResources().getResources(0),
    lambda: ft.GpuIndexTurboQuant(ft.StandardGpuResources(), index),
    lambda: ft.index_cpu_to_gpu(ft.StandardGpuResources(), 0, index),
    lambda: ft.index_cpu_to_all_gpus(index),
):
    try:
        call()
        print("nothing was raised")
    except RuntimeError as e:
        print(str(e).splitlines()[-1])
"""


def test_without_the_gpu_part():
    count, *messages = output_of(NOT_BUILT + MESSAGES).splitlines()
    assert count == "0"
    assert len(messages) == 4
    for message in messages:
        assert "without its GPU part" in message
        assert "FAISS_TURBOQUANT_GPU=ON" in message
    script = f"""
{NOT_BUILT}
import faiss, faiss_turboquant
index = faiss.index_factory(8, "IDMap,TQ4")
print(type(faiss.downcast_index(index.index)).__name__)
del index
"""
    assert output_of(script) == "IndexTurboQuant"


@needs_build
def test_without_a_gpu():
    count, *messages = output_of(HIDDEN + MESSAGES).splitlines()
    assert count == "0"
    assert len(messages) == 4
    for message in messages[:3]:
        assert "CUDA" in message
    assert "there is no GPU" in messages[3]


def test_faiss_s_own_names_stay_faiss_s():
    assert faiss.get_num_gpus is not faiss_turboquant.get_num_gpus
    assert not hasattr(faiss, "GpuIndexTurboQuant")


@needs_build
def test_resources_before_their_first_use():
    resources = faiss_turboquant.StandardGpuResources()
    resources.setTempMemory(1 << 26)
    resources.setDefaultStream(0, 7)
    with pytest.raises(TypeError):
        resources.setDefaultStream(0, "7")


@needs_build
def test_what_is_on_the_cpu_is_copied():
    index = faiss.index_factory(8, "IDMap,TQ4")
    index.add_with_ids(gaussian(20, 8), np.arange(20) + 5)
    copy = faiss_turboquant.index_gpu_to_cpu(index)
    assert isinstance(copy, faiss.IndexIDMap)
    assert isinstance(faiss.downcast_index(copy.index), faiss.IndexTurboQuant)
    xq = gaussian(3, 8, 1)
    assert_same(copy.search(xq, 4), index.search(xq, 4))
    shards = faiss.IndexShards(8, True, False)
    shards.add_shard(make_index(8, n=5))
    shards.add_shard(make_index(8, n=5))
    with pytest.raises(RuntimeError, match="faiss::IndexTurboQuant"):
        faiss_turboquant.index_gpu_to_cpu(shards)


@needs_build
def test_numbers_of_resources_and_devices():
    resources = faiss_turboquant.StandardGpuResources()
    with pytest.raises(RuntimeError, match="1 resources for 2 devices"):
        faiss_turboquant.index_cpu_to_gpu_multiple_py(
            [resources], make_index(8), gpus=[0, 1]
        )


# ------------------------------------------------------------ views of arrays


class CudaArray:
    """`__cuda_array_interface__` of an array, and nothing else."""

    def __init__(self, x, **others):
        x_interface = getattr(
            x, "__cuda_array_interface__", None
        ) or x.__array_interface__
        self.__cuda_array_interface__ = {**x_interface, "version": 3, **others}
        self.owner = x


class DlpackArray:
    """DLPack of an array, and nothing else."""

    def __init__(self, x, device=None):
        self.owner = x
        self.shape = x.shape
        self.device = device or x.__dlpack_device__()

    def __dlpack__(self, **keywords):
        return self.owner.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.device


VIEWS = (
    lambda x: _device_arrays.view_of_cuda_array(CudaArray(x)),
    lambda x: _device_arrays.view_of_dlpack(x),
    lambda x: _device_arrays.view_of_dlpack(DlpackArray(x)),
)


@pytest.mark.parametrize("view_of", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_views(view_of, dtype):
    x = np.zeros((6, 5), dtype)
    for array, is_contiguous in (
        (x, True), (x[2:4], True), (x[:, :3], False), (x.T, False),
        (x[::2], False), (x[:1, :1], True), (x[:, :1][:1], True),
        (x[:0], True), (np.zeros((1, 5), dtype).T, True),
    ):
        view = view_of(array)
        assert view.pointer == array.ctypes.data or 0 in array.shape
        assert view.shape == array.shape
        assert view.dtype == dtype
        assert view.is_contiguous == is_contiguous


def test_a_dtype_that_dlpack_has_and_we_have_not():
    with pytest.raises(RuntimeError, match="type code 5"):
        _device_arrays.view_of_dlpack(np.zeros((2, 3), "complex64"))


def test_arrays_of_the_host_have_no_library():
    x = gaussian(2, 3)
    for array in (x, DlpackArray(x), x.tolist()):
        assert _device_arrays.library_of(array) is None


def test_the_library_of_an_array():
    x = gaussian(2, 3)
    library = _device_arrays.library_of(DlpackArray(x, (2, 1)))
    assert (library.stream(), library.device) == (0, 1)
    for stream in (None, 1, 99):
        library = _device_arrays.library_of(CudaArray(x, stream=stream))
        assert (library.stream(), library.device) == (stream, None)


# ------------------------------------------------------------------ with a GPU


D = 48
N = 2000
NQ = 9
K = 6


# another one than device 0, where there are several
LAST_DEVICE = faiss_turboquant.get_num_gpus() - 1


def torch_array(x, device=0):
    torch = pytest.importorskip("torch")
    return torch.as_tensor(x, device=f"cuda:{device}")


def cupy_array(x, device=0):
    cupy = pytest.importorskip("cupy")
    with cupy.cuda.Device(device):
        return cupy.asarray(x)


def dlpack_array(x):
    return DlpackArray(torch_array(x))


def jax_array(x):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX without a GPU")
    return jax.numpy.asarray(x)


def cuda_array(x):
    array = CudaArray(torch_array(x))
    array.shape = x.shape
    return array


ON_DEVICE = (torch_array, cupy_array, dlpack_array, jax_array, cuda_array)


def to_numpy(x):
    return x if isinstance(x, np.ndarray) else x.get() \
        if hasattr(x, "get") else x.cpu().numpy()


def assert_same(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert np.array_equal(to_numpy(a), b)


@pytest.fixture(scope="module")
def resources():
    return faiss_turboquant.StandardGpuResources()


def all_distances(index, xq):
    """By row, of an index on the CPU."""
    distances, labels = index.search(xq, index.ntotal)
    by_row = np.empty_like(distances)
    np.put_along_axis(by_row, labels, distances, axis=1)
    return by_row


def make_gpu_index(resources, **arguments):
    index = make_index(D, n=N, **arguments)
    return index, faiss_turboquant.GpuIndexTurboQuant(resources, index)


@needs_gpu
@pytest.mark.parametrize("metric", METRICS)
def test_arrays_of_numpy(resources, metric):
    index, gpu_index = make_gpu_index(resources, metric=metric, centre=True)
    xq = gaussian(NQ, D, 3)
    assert gpu_index.ntotal == N and gpu_index.d == D
    assert gpu_index.getDevice() == 0
    assert gpu_index.tq.nbits == 4
    expected = index.search(xq, K)
    assert_same(gpu_index.search(xq, K), expected)
    assert_same([gpu_index.assign(xq, K)], expected[1:])
    radius = float(expected[0][0, 3])
    assert_same(
        gpu_index.range_search(xq, radius), index.range_search(xq, radius)
    )
    params = faiss.SearchParameters(sel=faiss.IDSelectorRange(10, 500))
    assert_same(
        gpu_index.search(xq, K, params=params),
        index.search(xq, K, params=params),
    )
    assert_same([gpu_index.compute_distances(xq)], [all_distances(index, xq)])
    assert_same([gpu_index.reconstruct_n(5, 7)], [index.reconstruct_n(5, 7)])
    assert_same([gpu_index.reconstruct(5)], [index.reconstruct(5)])
    assert gpu_index.remove_ids(np.arange(0, N, 3)) == len(range(0, N, 3))
    index.remove_ids(np.arange(0, N, 3))
    assert_same(gpu_index.search(xq, K), index.search(xq, K))
    copy = faiss.IndexTurboQuant()
    gpu_index.copyTo(copy)
    assert (codes_of(copy) == codes_of(index)).all()


@needs_gpu
def test_sign_filter(resources):
    """Searches for few queries read few codes and find the same."""
    index, gpu_index = make_gpu_index(resources)
    assert (gpu_index.use_sign_filter, gpu_index.sign_margin) == (-1, 5.5)
    xq = gaussian(5, D, 3)
    expected = index.search(xq, K)
    for use_sign_filter in (0, 1, -1):
        gpu_index.use_sign_filter = use_sign_filter
        assert_same(gpu_index.search(xq, K), expected)
    # far too small a margin: neighbours are lost
    gpu_index.use_sign_filter, gpu_index.sign_margin = 1, 1e-3
    assert not np.array_equal(gpu_index.search(xq, K)[1], expected[1])
    copy = faiss_turboquant.index_gpu_to_cpu(gpu_index)
    assert copy.sign_margin == 1e-3
    gpu_index.sign_margin = -1
    with pytest.raises(RuntimeError, match="sign_margin = -1"):
        gpu_index.search(xq, K)


@needs_gpu
@pytest.mark.parametrize("on_device", ON_DEVICE)
def test_arrays_on_the_device(resources, on_device):
    index = make_index(D, centre=True)
    gpu_index = faiss_turboquant.GpuIndexTurboQuant(resources, D)
    x, xq = gaussian(N, D), gaussian(NQ, D, 3)
    gpu_index.train(on_device(gaussian(100, D, 1) + 0.5))
    index.add(x)
    gpu_index.add(on_device(x))
    copy = faiss_turboquant.index_gpu_to_cpu(gpu_index)
    assert (codes_of(copy) == codes_of(index)).all()

    expected = index.search(xq, K)
    queries = on_device(xq)
    results = gpu_index.search(queries, K)
    if on_device in (torch_array, cupy_array):
        assert all(type(r) is type(queries) for r in results)
        assert all(r.device == queries.device for r in results)
    else:
        assert all(isinstance(r, np.ndarray) for r in results)
    assert_same(results, expected)
    assert_same([gpu_index.assign(queries, K)], expected[1:])
    params = faiss.SearchParameters(sel=faiss.IDSelectorRange(10, 500))
    assert_same(
        gpu_index.search(queries, K, params=params),
        index.search(xq, K, params=params),
    )
    scores = gpu_index.compute_distances(queries)
    assert type(scores) is type(results[0])
    assert_same([scores], [all_distances(index, xq)])
    radius = float(expected[0][0, 3])
    assert_same(
        gpu_index.range_search(queries, radius),
        index.range_search(xq, radius),
    )


@needs_gpu
@pytest.mark.parametrize("on_device", [torch_array, cupy_array])
@pytest.mark.parametrize("device", [0, LAST_DEVICE])
def test_arrays_on_another_device(resources, device, on_device):
    index = make_index(D)
    gpu_index = faiss_turboquant.GpuIndexTurboQuant(
        resources, D, device=device
    )
    assert gpu_index.getDevice() == device
    of_arrays = LAST_DEVICE - device
    x, xq = gaussian(N, D), gaussian(NQ, D, 3)
    index.add(x)
    gpu_index.add(on_device(x, of_arrays))
    queries = on_device(xq, of_arrays)
    results = gpu_index.search(queries, K)
    assert all(r.device == queries.device for r in results)
    assert_same(results, index.search(xq, K))


@needs_gpu
@pytest.mark.parametrize("on_device", ON_DEVICE)
def test_results_into_arrays_on_the_device(resources, on_device):
    if on_device is jax_array:
        pytest.skip("JAX's arrays do not change")
    index, gpu_index = make_gpu_index(resources)
    xq = gaussian(NQ, D, 3)
    distances = on_device(np.zeros((NQ, K), "float32"))
    labels = on_device(np.zeros((NQ, K), "int64"))
    results = gpu_index.search(on_device(xq), K, D=distances, I=labels)
    assert results[0] is distances and results[1] is labels
    owners = [getattr(r, "owner", r) for r in results]
    assert_same(owners, index.search(xq, K))
    scores = on_device(np.zeros((NQ, N), "float32"))
    assert gpu_index.compute_distances(on_device(xq), D=scores) is scores
    assert_same([getattr(scores, "owner", scores)], [all_distances(index, xq)])
    y = on_device(np.zeros((7, D), "float32"))
    assert gpu_index.reconstruct_n(5, 7, x=y) is y
    assert_same([getattr(y, "owner", y)], [index.reconstruct_n(5, 7)])


@needs_gpu
def test_tensors_of_other_types_and_layouts(resources):
    torch = pytest.importorskip("torch")
    index, gpu_index = make_gpu_index(resources)
    x = gaussian(NQ, D, 3)
    tensor = torch_array(x)
    for queries in (
        torch_array(np.asfortranarray(x)), tensor.T.contiguous().T,
        tensor.double(), tensor.clone().requires_grad_(),
    ):
        assert_same(gpu_index.search(queries, K), index.search(x, K))
    half = tensor.bfloat16()
    assert_same(
        gpu_index.search(half, K),
        index.search(half.float().cpu().numpy(), K),
    )
    none = gpu_index.search(tensor[:0], K)
    assert none[0].shape == none[1].shape == (0, K)
    assert none[1].dtype == torch.int64


@needs_gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_the_order_of_the_current_stream(resources, library):
    """Queries that are written late, on a stream of the caller's, and results
    that are read at once."""
    torch = pytest.importorskip("torch")
    index, gpu_index = make_gpu_index(resources)
    xq = gaussian(NQ, D, 3)
    source, queries = torch_array(xq), torch_array(gaussian(NQ, D, 4))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        queries.copy_(source)
        if library == "torch":
            results = gpu_index.search(queries, K)
        else:
            cupy = pytest.importorskip("cupy")
            with cupy.cuda.ExternalStream(stream.cuda_stream):
                results = gpu_index.search(cupy.asarray(queries), K)
        copies = [torch.as_tensor(r).clone() for r in results]
    stream.synchronize()
    assert_same(copies, index.search(xq, K))


@needs_gpu
def test_bad_arrays_on_the_device(resources):
    _, gpu_index = make_gpu_index(resources)
    x = torch_array(gaussian(NQ, D))
    with pytest.raises(RuntimeError, match=r"search: x has shape \(9, 47\)"):
        gpu_index.search(x[:, 1:], K)
    with pytest.raises(RuntimeError, match=r"add: x has shape \(48,\)"):
        gpu_index.add(x[0])
    with pytest.raises(RuntimeError, match="a list"):
        gpu_index.search(x.tolist(), K)
    with pytest.raises(RuntimeError, match="k = 0"):
        gpu_index.search(x, 0)
    with pytest.raises(RuntimeError, match="k = 2049"):
        gpu_index.search(x, 2049)
    with pytest.raises(RuntimeError, match="float64"):
        gpu_index.search(DlpackArray(x.double()), K)
    with pytest.raises(RuntimeError, match="not C-contiguous"):
        gpu_index.search(DlpackArray(x.T.contiguous().T), K)
    with pytest.raises(RuntimeError, match=r"D has shape \(9, 5\)"):
        gpu_index.search(x, K, D=torch_array(np.zeros((NQ, 5), "float32")))
    with pytest.raises(RuntimeError, match="I has .* int32"):
        gpu_index.search(x, K, I=torch_array(np.zeros((NQ, K), "int32")))
    bad = x.clone()
    bad[3, 4] = float("nan")
    with pytest.raises(RuntimeError, match="query 3 has a NaN"):
        gpu_index.search(bad, K)
    with pytest.raises(RuntimeError, match="vector 3 has a NaN"):
        gpu_index.add(bad)
    assert gpu_index.ntotal == N


@needs_gpu
def test_other_rotations_and_codecs(resources):
    xq = gaussian(NQ, D, 3)
    for nbits, rotation, memory in ((1, 0, 8), (2, 1, 0), (3, 0, 10)):
        arguments = (nbits, faiss.METRIC_L2, rotation, 7, memory)
        index = faiss.IndexTurboQuant(D, *arguments)
        gpu_index = faiss_turboquant.GpuIndexTurboQuant(
            resources, D, *arguments, device=0
        )
        index.add(gaussian(N, D))
        gpu_index.add(gaussian(N, D))
        assert_same(gpu_index.search(xq, K), index.search(xq, K))


@needs_gpu
@pytest.mark.parametrize(
    "description",
    ["TQ4", "IDMap,TQ2", "PCA16,TQ4", "TQ2,RFlat", "TQ4t", "IVF8,TQ4"],
)
def test_cloning(resources, description):
    index = faiss.index_factory(D, description)
    index.train(gaussian(N, D))
    if "IDMap" in description:
        index.add_with_ids(gaussian(N, D), np.arange(N) * 3)
    else:
        index.add(gaussian(N, D))
    xq = gaussian(NQ, D, 3)
    expected = index.search(xq, K)
    shard = faiss_turboquant.GpuMultipleClonerOptions(shard=True)
    for gpu_index in (
        faiss_turboquant.index_cpu_to_gpu(resources, 0, index),
        faiss_turboquant.index_cpu_to_all_gpus(index),
        faiss_turboquant.index_cpu_to_gpus_list(
            index, shard, gpus=[0, LAST_DEVICE]
        ),
        faiss_turboquant.index_cpu_to_gpu_multiple_py(
            [resources, resources], index, gpus=[0, LAST_DEVICE]
        ),
    ):
        assert_same(gpu_index.search(xq, K), expected)
        back = faiss_turboquant.index_gpu_to_cpu(gpu_index)
        assert type(back) is type(index)
        assert_same(back.search(xq, K), expected)


def make_ivf(description="IVF8,TQ4"):
    index = faiss.index_factory(D, description)
    index.train(gaussian(N, D))
    index.nprobe = 3
    return index


@needs_gpu
@pytest.mark.parametrize("on_device", [np.asarray, *ON_DEVICE])
@pytest.mark.parametrize("description", ["IVF8,TQ4", "IVF8(TQ4),TQ2t"])
def test_inverted_files(resources, description, on_device):
    index = make_ivf(description)
    gpu_index = faiss_turboquant.index_cpu_to_gpu(resources, 0, index)
    assert isinstance(gpu_index, faiss_turboquant.GpuIndexIVFTurboQuant)
    x, xq = gaussian(N, D), gaussian(NQ, D, 3)
    index.add(x[:100])
    gpu_index.add(on_device(x[:100]))
    ids = np.arange(100, N) * 5
    index.add_with_ids(x[100:], ids)
    gpu_index.add_with_ids(on_device(x[100:]), ids)
    assert gpu_index.ntotal == N
    assert gpu_index.get_list_size(2) == index.get_list_size(2)
    queries = on_device(xq)
    expected = index.search(xq, K)
    assert gpu_index.nprobe == 3
    assert_same(gpu_index.search(queries, K), expected)
    params = faiss.SearchParametersIVF(
        nprobe=5, sel=faiss.IDSelectorRange(10, 5000)
    )
    assert_same(
        gpu_index.search(queries, K, params=params),
        index.search(xq, K, params=params),
    )
    radius = float(expected[0][0, 3])
    assert_same(
        gpu_index.range_search(queries, radius),
        index.range_search(xq, radius),
    )
    assert gpu_index.remove_ids(ids[:50]) == 50
    index.remove_ids(ids[:50])
    gpu_index.nprobe = index.nprobe = 8
    assert_same(gpu_index.search(queries, K), index.search(xq, K))
    back = faiss_turboquant.index_gpu_to_cpu(gpu_index)
    assert type(back) is type(index)
    assert_same(back.search(xq, K), index.search(xq, K))


@needs_gpu
def test_inverted_files_with_a_quantizer_of_their_own(resources):
    x, xq = gaussian(N, D), gaussian(NQ, D, 3)
    index = faiss.IndexIVFTurboQuant(faiss.IndexFlatL2(D), D, 8, 2)
    gpu_index = faiss_turboquant.GpuIndexIVFTurboQuant(
        resources, faiss.IndexFlatL2(D), D, 8, 2
    )
    index.train(x)
    gpu_index.train(x)
    index.add(x)
    gpu_index.add(x)
    assert_same(gpu_index.search(xq, K), index.search(xq, K))
    assert gpu_index.parameters().tq.nbits == 2
    with pytest.raises(RuntimeError, match="IVFTurboQuant.search: x has shape"):
        gpu_index.search(x[:, :5], K)


@needs_gpu
def test_what_cloning_returns(resources):
    index = faiss.index_factory(D, "IDMap,TQ4")
    gpu_index = faiss_turboquant.index_cpu_to_gpu(resources, 0, index)
    assert isinstance(gpu_index, faiss.IndexIDMap)
    inside = faiss.downcast_index(gpu_index.index)
    assert isinstance(inside, faiss_turboquant.GpuIndexTurboQuant)
    alone = faiss_turboquant.index_cpu_to_gpu(
        resources, 0, faiss.IndexTurboQuant(D)
    )
    assert isinstance(alone, faiss_turboquant.GpuIndexTurboQuant)
    replicas = faiss_turboquant.index_cpu_to_gpus_list(
        faiss.IndexTurboQuant(D), gpus=[0, 0]
    )
    assert isinstance(replicas, faiss.IndexReplicas)
    with pytest.raises(RuntimeError, match="faiss::IndexFlat cannot go"):
        faiss_turboquant.index_cpu_to_gpu(
            resources, 0, faiss.index_factory(D, "IDMap,Flat")
        )
    with pytest.raises(RuntimeError, match="device 99"):
        faiss_turboquant.index_cpu_to_gpu(resources, 99, index)


@needs_gpu
def test_searches_of_several_threads(resources):
    from concurrent.futures import ThreadPoolExecutor

    index, gpu_index = make_gpu_index(resources)
    batches = [gaussian(NQ, D, seed) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: gpu_index.search(x, K), batches))
    for x, result in zip(batches, results):
        assert_same(result, index.search(x, K))


@needs_gpu
def test_next_to_torch_utils():
    pytest.importorskip("torch")
    script = """
import torch, faiss, faiss_turboquant, faiss.contrib.torch_utils
import numpy as np
x = np.random.default_rng(0).standard_normal((50, 16)).astype("float32")
index = faiss.IndexTurboQuant(16)
index.add(x)
res = faiss_turboquant.StandardGpuResources()
gpu_index = faiss_turboquant.index_cpu_to_gpu(res, 0, index)
expected = index.search(x, 3)
for queries in (x, torch.from_numpy(x), torch.from_numpy(x).cuda()):
    D, I = gpu_index.search(queries, 3)
    assert type(D) is type(queries)
    if type(D) is torch.Tensor:
        assert D.device == queries.device
        D, I = D.cpu().numpy(), I.cpu().numpy()
    assert (D == expected[0]).all() and (I == expected[1]).all()
gpu_index.add(torch.from_numpy(x))
print(gpu_index.ntotal)
"""
    assert output_of(script) == "100"
