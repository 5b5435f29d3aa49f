"""The recipe: where every row comes from, what the inputs may be, and what is reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ofa_fast.initialization import Initialization, WordVectors, initialize, match_vocabularies, plan, subword_vectors
from ofa_fast.initialization.report import script
from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR

DIM = 32


@pytest.fixture(scope="module")
def table(tokenizers) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(tokenizers["wordpiece"]), DIM, generator=generator) * torch.linspace(2, 0.1, DIM) + 0.3


@pytest.fixture(scope="module")
def inputs(tokenizers, table, word_vectors):
    return table, tokenizers["wordpiece"], tokenizers["metaspace"], word_vectors


@pytest.fixture(scope="module")
def results(inputs) -> list[Initialization]:
    return initialize(*inputs, rank=[8, 16, None], source_bias=torch.linspace(-1, 1, len(inputs[0])))


def test_origins_and_shapes(inputs, results, tokenizers):
    rows = len(tokenizers["metaspace"])
    sources = torch.from_numpy(match_vocabularies(inputs[1], inputs[2]))
    has_vector = torch.from_numpy(subword_vectors(inputs[2], inputs[3])).any(1)
    expected = torch.full((rows,), RANDOM)
    expected[has_vector] = SIMILAR
    expected[sources >= 0] = COPIED
    assert set(expected.tolist()) == {COPIED, SIMILAR, RANDOM}
    for result, rank in zip(results, (8, 16, DIM), strict=True):
        assert result.origin.dtype == torch.uint8
        assert result.origin.tolist() == expected.tolist()
        assert torch.equal(result.sources, sources)
        assert result.coordinates.shape == (rows, rank)
        assert result.coordinates.dtype == torch.float32
        assert result.source_coordinates.shape == (len(inputs[0]), rank)
        assert result.basis is None if rank == DIM else result.basis.shape == (rank, DIM)


def test_rows_are_made_as_the_formula_says(results):
    for result in results:
        table = result.source_coordinates.double()
        copied, similar = result.origin == COPIED, result.origin == SIMILAR
        torch.testing.assert_close(result.coordinates[copied], table[result.sources[copied]].float())
        rows = (result.weights[similar].double()[:, :, None] * table[result.neighbors[similar]]).sum(1)
        torch.testing.assert_close(result.coordinates[similar], rows.float())
        torch.testing.assert_close(result.weights[similar].sum(1), torch.ones(int(similar.sum())))
        assert (result.neighbors[~similar] == -1).all()
        assert (result.weights[~similar] == 0).all()


def test_neighbors_are_the_nearest_sources_with_a_vector(inputs, results):
    sources = torch.from_numpy(subword_vectors(inputs[1], inputs[3])).double()
    targets = torch.from_numpy(subword_vectors(inputs[2], inputs[3])).double()
    similar = (results[0].origin == SIMILAR).nonzero().flatten()
    cosines = torch.nn.functional.normalize(targets[similar]) @ torch.nn.functional.normalize(sources).T
    cosines[:, ~sources.any(1)] = -torch.inf
    expected = cosines.sort(dim=1, descending=True).values[:, :10]
    neighbors = results[0].neighbors[similar]
    torch.testing.assert_close(cosines.gather(1, neighbors), expected)
    assert all(len(set(row)) == 10 for row in neighbors.tolist())
    torch.testing.assert_close(results[0].weights[similar].double(), torch.softmax(expected / 0.1, 1))


def test_ranks_of_a_list_equal_single_ranks(inputs, results):
    for result, rank in zip(results, (8, 16, DIM), strict=True):
        alone = initialize(*inputs, rank=rank)
        table = alone.coordinates if alone.basis is None else alone.coordinates @ alone.basis
        other = result.coordinates if result.basis is None else result.coordinates @ result.basis
        kept = result.origin != RANDOM
        torch.testing.assert_close(table[kept], other[kept], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.neighbors, result.neighbors)


def test_singular_values_sit_in_the_basis(inputs, results):
    u, s, vh = torch.linalg.svd(inputs[0].double(), full_matrices=False)
    for result, rank in zip(results[:2], (8, 16), strict=True):
        product = result.source_coordinates.double() @ result.basis.double()
        torch.testing.assert_close(product, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-5, rtol=1e-5)
        gram = result.source_coordinates.double().T @ result.source_coordinates.double()
        torch.testing.assert_close(gram, torch.eye(rank).double(), atol=1e-5, rtol=0)
        assert result.report["explained_variance"] == pytest.approx(
            float(s[:rank].square().sum() / s.square().sum()), abs=1e-6
        )


def test_random_rows_have_the_moments_of_the_source(inputs, tokenizers):
    result = initialize(*inputs[:2], tokenizers["metaspace"], None, rank=None, method="random", target_rows=60_000)
    drawn = result.coordinates[result.origin == RANDOM]
    torch.testing.assert_close(drawn.mean(0), inputs[0].mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std(0), inputs[0].std(0, correction=0), atol=0.05, rtol=0.02)


def test_a_random_row_depends_on_seed_and_id_alone(inputs, results, tokenizers):
    longer = initialize(*inputs, rank=None, target_rows=len(tokenizers["metaspace"]) + 3000)
    assert torch.equal(longer.coordinates[: len(results[2].coordinates)], results[2].coordinates)
    baseline = initialize(*inputs, rank=None, method="random")
    drawn = results[2].origin == RANDOM
    assert torch.equal(baseline.coordinates[drawn], results[2].coordinates[drawn])
    other = initialize(*inputs, rank=None, method="random", seed=1)
    assert not torch.isclose(baseline.coordinates[drawn], other.coordinates[drawn]).all(1).any()


def test_the_random_baseline_copies_as_ofa_does(inputs, results):
    baseline = initialize(*inputs[:3], None, rank=[16], method="random")[0]
    assert torch.equal(baseline.origin == COPIED, results[1].origin == COPIED)
    assert not (baseline.origin == SIMILAR).any()
    copied = baseline.origin == COPIED
    torch.testing.assert_close(baseline.coordinates[copied], results[1].coordinates[copied])


def test_bias_moves_with_its_token(inputs, results):
    bias = torch.linspace(-1, 1, len(inputs[0]))
    result = results[0]
    copied, similar, drawn = (result.origin == kind for kind in (COPIED, SIMILAR, RANDOM))
    torch.testing.assert_close(result.bias[copied], bias[result.sources[copied]])
    torch.testing.assert_close(
        result.bias[similar], (result.weights[similar] * bias[result.neighbors[similar]]).sum(1), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(result.bias[drawn], bias.mean().expand(int(drawn.sum())))
    assert initialize(*inputs, parity=True, rank=8, source_bias=bias).bias is None


def test_own_vocabulary_at_full_rank_is_the_source_itself(inputs):
    bias = torch.linspace(-1, 1, len(inputs[0]))
    result = initialize(inputs[0], inputs[1], inputs[1], inputs[3], rank=None, source_bias=bias)
    assert torch.equal(result.coordinates, inputs[0])
    assert torch.equal(result.bias, bias)


def test_inputs_may_be_numpy_half_precision_read_only_or_padded(inputs, results):
    array = inputs[0].numpy().copy()
    array.flags.writeable = False
    padded = torch.cat([inputs[0], torch.full((5, DIM), 1e3)])
    for source in (array, inputs[0].double(), padded):
        torch.testing.assert_close(initialize(source, *inputs[1:], rank=None).coordinates, results[2].coordinates)
    half = initialize(inputs[0].bfloat16(), *inputs[1:], rank=None)
    assert torch.equal(half.source_coordinates, inputs[0].bfloat16().float())


def test_padding_rows(inputs, results):
    rows = len(results[0].origin)
    result = initialize(*inputs, rank=8, target_rows=rows + 6, source_bias=np.zeros(len(inputs[0]), np.float32))
    assert result.coordinates.shape[0] == result.bias.shape[0] == rows + 6
    assert (result.origin[rows:] == RANDOM).all()
    assert result.report["counts"]["padding_rows"] == 6


def test_fewer_sources_than_neighbors(tokenizers, table):
    few = WordVectors(["god", "himmel"], np.array([[1.0, 0.5], [0.9, 0.6]], dtype=np.float32), ["eng", "deu"])
    result = initialize(table, tokenizers["wordpiece"], tokenizers["metaspace"], few, rank=8, neighbors=50)
    usable = result.report["counts"]["source_tokens_with_vector"]
    similar = result.origin == SIMILAR
    assert 0 < usable < 50 and similar.any()
    assert ((result.neighbors[similar] >= 0).sum(1) == usable).all()
    assert (result.weights[result.neighbors < 0] == 0).all()
    assert result.coordinates.isfinite().all()


def test_no_source_with_a_vector_leaves_the_rest_random(tokenizers, table):
    unknown = WordVectors(["ᎤᏁᎳᏅᎯ"], np.ones((1, 4), dtype=np.float32), ["chr"])
    result = initialize(table, tokenizers["wordpiece"], tokenizers["metaspace"], unknown, rank=8)
    assert result.report["counts"]["target_tokens_with_vector"] > 0
    assert result.report["counts"]["source_tokens_with_vector"] == 0
    assert set(result.origin.tolist()) == {COPIED, RANDOM}


def test_results_repeat_bit_for_bit(inputs, results):
    again = initialize(*inputs, rank=[8, 16, None])
    for first, second in zip(results, again, strict=True):
        assert torch.equal(first.coordinates, second.coordinates)
        assert torch.equal(first.weights, second.weights)


def test_chunks_of_queries_do_not_change_the_result(inputs, results, monkeypatch):
    monkeypatch.setattr("ofa_fast.initialization.neighbors.QUERIES_PER_CHUNK", 37)
    chunked = initialize(*inputs, rank=8, progress=True)
    assert torch.equal(chunked.neighbors, results[0].neighbors)
    assert torch.equal(chunked.weights, results[0].weights)


def test_plan_counts_what_initialize_does(inputs, results):
    planned = plan(inputs[0].shape, *inputs[1:], rank=[8, None])
    report = results[0].report
    assert planned["counts"] == {name: report["counts"][name] for name in planned["counts"]}
    assert planned["scripts"] == report["scripts"]
    sizes = {name: value for name, value in planned["parameters"][0].items() if name != "rank"}
    assert sizes == report["parameters"]
    assert planned["memory"]["peak"] > planned["memory"]["results"] > 0


def test_report(inputs, results, tokenizers):
    report = json.loads(json.dumps(results[0].report, allow_nan=False))
    counts = report["counts"]
    assert counts["copied"] + counts["similar"] + counts["random"] == counts["rows"] == len(tokenizers["metaspace"])
    assert {"Latin", "Cherokee", "Common"} <= set(report["scripts"])
    assert sum(script["tokens"] for script in report["scripts"].values()) == counts["rows"]
    assert report["parameters"] == {
        "factorized": counts["rows"] * 8 + 8 * DIM,
        "dense": counts["rows"] * DIM,
        "ratio": pytest.approx((counts["rows"] * 8 + 8 * DIM) / (counts["rows"] * DIM), abs=1e-6),
    }
    assert all(len(digest) == 64 for digest in report["sha256"].values())
    assert {"matching", "subword_vectors", "neighbor_search", "svd", "rows"} <= set(report["seconds"])
    other = initialize(inputs[0] + 1, *inputs[1:], rank=8).report
    changed = {name for name in report["sha256"] if report["sha256"][name] != other["sha256"][name]}
    assert changed == {"source_embeddings"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" water", "Latin"),
        ("Вода", "Cyrillic"),
        ("ⲙⲱⲟⲩ", "Coptic"),
        ("ᎠᎹ", "Cherokee"),
        ("水", "Han"),
        ("々", "Han"),
        ("ﾐｽﾞ", "Katakana"),
        ("２つ", "Hiragana"),
        ("Ｗ", "Latin"),
        ("ᱫᱟᱜ", "Ol Chiki"),
        ("ߖߌ", "N'Ko"),
        ("7:", "Common"),
        (b"\xe2", "Bytes"),
        (None, "Unused"),
    ],
)
def test_script_of_a_token(text, expected):
    assert script(text) == expected


@pytest.mark.parametrize("which", [0, 2])
def test_write_and_read(results, tmp_path, which):
    result = results[which]
    result.write(tmp_path / "out", export_npy=True)
    read = Initialization.read(tmp_path / "out")
    for name in ("coordinates", "origin", "neighbors", "weights", "sources", "bias", "source_coordinates"):
        assert torch.equal(getattr(read, name), getattr(result, name))
    assert read.report == json.loads(json.dumps(result.report))
    files = {file.name for file in (tmp_path / "out").iterdir()}
    arrays = {"target_matrix.npy"} | ({"primitive_embeddings.npy", "source_matrix.npy"} if which == 0 else set())
    assert files == {"initialization.json", "initialization.safetensors"} | arrays
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "target_matrix.npy"), result.coordinates.numpy())
    if which == 0:
        assert torch.equal(read.basis, result.basis)
        np.testing.assert_array_equal(np.load(tmp_path / "out" / "primitive_embeddings.npy"), result.basis.numpy())


def test_write_without_tables(results, tmp_path):
    results[0].write(tmp_path, tables=False)
    assert set(load_file(tmp_path / "initialization.safetensors")) == {
        "origin",
        "neighbors",
        "weights",
        "similarities",
        "sources",
        "bias",
        "source_tokens",
        "source_tokens_offsets",
        "target_tokens",
        "target_tokens_offsets",
    }
    assert Initialization.read(tmp_path).coordinates is None


def test_read_refuses_missing_and_damaged_files(results, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"initialization\.json is missing"):
        Initialization.read(tmp_path)
    results[0].write(tmp_path)
    tensors = tmp_path / "initialization.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        Initialization.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rank": 0}, ValueError, r"rank must lie in \[1, 32\]"),
        ({"rank": DIM + 1}, ValueError, r"rank must lie in \[1, 32\].*got 33"),
        ({"rank": []}, ValueError, "at least one rank"),
        ({"rank": 2.5}, TypeError, "rank must be an integer"),
        ({"rank": [True]}, TypeError, "rank must be an integer"),
        ({"neighbors": 0}, ValueError, "neighbors must be at least 1"),
        ({"neighbors": "10"}, TypeError, "neighbors must be an integer"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be above 0"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"word_vectors": None}, ValueError, "needs word vectors"),
        ({"target_rows": 7}, ValueError, "target_rows is 7, but target_tokenizer needs"),
        ({"source_embeddings": torch.zeros(3, DIM)}, ValueError, "has 3 rows, but source_tokenizer needs"),
        ({"source_embeddings": torch.zeros(3)}, ValueError, r"must be \[Vs, D\]"),
        ({"source_embeddings": torch.zeros(5000, DIM, dtype=torch.long)}, TypeError, "floating point"),
        ({"source_embeddings": torch.full((5000, DIM), torch.nan)}, ValueError, "row 0 holds NaN"),
        ({"source_bias": torch.zeros(3)}, ValueError, "source_bias must be"),
        ({"source_languages": "eng"}, TypeError, "list of codes"),
        ({"source_languages": ["xyz"]}, ValueError, "xyz"),
        ({"parity": True, "source_embeddings": torch.zeros(5000, DIM)}, ValueError, "takes no padding"),
    ],
)
def test_bad_input_is_named(inputs, change, error, message):
    names = ("source_embeddings", "source_tokenizer", "target_tokenizer", "word_vectors")
    with pytest.raises(error, match=message):
        initialize(**({"rank": 8} | dict(zip(names, inputs, strict=True)) | change))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((3, 4), dtype=np.float32), r"must be \[2, d\].*got \[3, 4\]"),
        (np.zeros((2, 0), dtype=np.float32), r"must be \[2, d\].*got \[2, 0\]"),
    ],
)
def test_word_vectors_changed_after_they_were_checked(inputs, vectors, message):
    crooked = WordVectors(["a", "b"], np.ones((2, 4), dtype=np.float32))
    crooked.vectors = vectors
    with pytest.raises(ValueError, match=message):
        initialize(*inputs[:3], crooked, rank=8)


def test_ids_with_gaps(inputs):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "god": 3, "gott": 7}, unk_token="[UNK]"))
    target = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    result = initialize(*inputs[:2], target, inputs[3], rank=8)
    assert result.coordinates.shape[0] == 8
    assert result.report["scripts"]["Unused"]["random"] == 5
    with pytest.raises(ValueError, match="ids without gaps"):
        initialize(*inputs[:2], target, inputs[3], rank=8, parity=True)
