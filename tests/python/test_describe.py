"""describe(): what is inside an index."""

import dataclasses
import re

import faiss
import numpy as np
import pytest
from conftest import METRICS, gaussian

import faiss_turboquant
from faiss_turboquant import RotationType_Haar, describe

CODECS = [
    f"TQ{bits}{kind}"
    for bits in (1, 2, 3, 4)
    for kind in ("", "t", "t10", "t12", "mse", "prod")
] + [f"TQ{bits}.5{kind}" for bits in (1, 2, 3) for kind in ("", "t", "t12")]


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_have_their_factory_names(codec):
    index = faiss.index_factory(64, codec)
    found = describe(index)
    assert found.codec == codec
    assert found.bits == float(re.match(r"TQ([\d.]+)", codec)[1])
    assert found.code_bytes == 64 * found.bits // 8
    assert found.code_bytes + found.factor_bytes == index.code_size
    assert found.bytes_per_vector == index.code_size
    assert found.wrappers == found.others == ()


def test_all_fields():
    index = faiss.IndexTurboQuant(
        200, 2, faiss.METRIC_INNER_PRODUCT, RotationType_Haar, seed=7
    )
    index.train(gaussian(50, 200))
    index.add(gaussian(30, 200))
    assert describe(index) == faiss_turboquant.Description(
        codec="TQ2",
        bits=2,
        code_bytes=50,
        factor_bytes=8,
        rotation="Haar",
        seed=7,
        metric="METRIC_INNER_PRODUCT",
        centre="mean of the training vectors",
        index_type="IndexTurboQuant",
        d=200,
        ntotal=30,
        wrappers=(),
        simd_level=faiss_turboquant.simd_level(),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        describe(index).bits = 3


@pytest.mark.parametrize("metric", METRICS)
def test_factors_of_the_metrics(metric):
    plain = describe(faiss.index_factory(64, "TQ4", metric))
    l2 = metric == faiss.METRIC_L2
    assert plain.metric == ("METRIC_L2" if l2 else "METRIC_INNER_PRODUCT")
    assert plain.factor_bytes == (8 if l2 else 4)
    assert plain.centre == "none"


@pytest.mark.parametrize(
    "description, wrappers",
    [
        ("IDMap2,TQ4", ["IndexIDMap2"]),
        ("TQ4,IDMap", ["IndexIDMap"]),
        ("PCA16,TQ4", ["IndexPreTransform(PCAMatrix 32 -> 16)"]),
        (
            "IDMap,PCA16,L2norm,TQ4,RFlat",
            [
                "IndexIDMap",
                "IndexRefineFlat",
                "IndexPreTransform(PCAMatrix 32 -> 16, "
                "NormalizationTransform 16 -> 16)",
            ],
        ),
        ("MinMax,TQ4", ["IndexRowwiseMinMax"]),
        ("HNSW8,TQ4", ["IndexHNSW"]),
        ("NSG8,TQ4", ["IndexNSG"]),
        ("IDMap,PCA16,IVF4,TQ4", [
            "IndexIDMap",
            "IndexPreTransform(PCAMatrix 32 -> 16)",
        ]),
    ],
)
def test_wrappers_from_the_outside_in(description, wrappers):
    found = describe(faiss.index_factory(32, description))
    assert found.codec == "TQ4"
    assert found.wrappers == tuple(wrappers)
    assert found.d == (16 if "PCA" in description else 32)


@pytest.mark.parametrize("metric", METRICS)
def test_inverted_files(metric):
    index = faiss.IndexIVFTurboQuant(
        faiss.IndexTurboQuant(32, 1, metric), 32, 4, 4, metric, memory=10
    )
    index.train(gaussian(500, 32))
    index.add(gaussian(20, 32))
    found = describe(index)
    assert found.index_type == "IndexIVFTurboQuant"
    assert found.codec == "TQ4t10"
    assert found.bytes_per_vector == index.code_size == 16 + 8
    assert found.centre == "centroid of the list"
    assert found.ntotal == 20
    (coarse,) = found.others
    assert coarse.codec == "TQ1" and coarse.ntotal == 4
    assert coarse.wrappers == ("IndexIVFTurboQuant",)


def test_several_inside():
    found = describe(faiss.index_factory(32, "TQ1t,Refine(TQ4)"))
    assert found.codec == "TQ1t" and found.wrappers == ("IndexRefine",)
    (fine,) = found.others
    assert fine.codec == "TQ4" and fine.wrappers == ("IndexRefine",)
    assert fine.others == ()

    shards = faiss.IndexShards(32)
    for _ in range(3):
        shards.add_shard(faiss.index_factory(32, "IDMap,TQ2"))
    found = describe(shards)
    assert found.wrappers == ("IndexShards", "IndexIDMap")
    assert [other.codec for other in found.others] == ["TQ2", "TQ2"]


def test_behind_what_faiss_does_not_downcast():
    ivf = faiss.index_factory(16, "IVF4,Flat")
    index = faiss.IndexIVFIndependentQuantizer(
        faiss.index_factory(32, "TQ4"), ivf, faiss.RandomRotationMatrix(32, 16)
    )
    outer = faiss.IndexIDMap(index)
    assert describe(outer).wrappers == (
        "IndexIDMap",
        "IndexIVFIndependentQuantizer",
    )


def test_it_prints_as_a_summary():
    index = faiss.index_factory(32, "IDMap,TQ1,Refine(TQ4t12)")
    index.add_with_ids(gaussian(5, 32), np.arange(5))
    lines = repr(describe(index)).splitlines()
    assert lines[0] == "TQ1: 4 + 8 bytes a vector (code + factors)"
    assert "  index     IndexTurboQuant, d = 32, ntotal = 5" in lines
    assert "  metric    METRIC_L2" in lines
    assert "  wrappers  IndexIDMap > IndexRefine" in lines
    assert "TQ4t12: 16 + 8 bytes a vector (code + factors)" in lines


def test_no_turboquant_inside():
    for index, name in (
        (faiss.IndexFlatL2(8), "IndexFlatL2"),
        (faiss.index_factory(8, "IDMap,SQ8"), "IndexIDMap"),
        (None, "None"),
    ):
        with pytest.raises(RuntimeError, match=f"describe.*{name}"):
            describe(index)
    with pytest.raises(TypeError):
        describe("TQ4")
