"""``parity=True`` against the published semantics, told again in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ofa_fast import _native
from ofa_fast.initialization import initialize, published_means, subword_vectors
from ofa_fast.initialization import neighbors as search
from ofa_fast.initialization import rows as rows_of_the_table
from ofa_fast.initialization.result import COPIED, RANDOM, SIMILAR
from ofa_fast.initialization.rows import _published_by_numpy, _published_natively
from ofa_fast.initialization.subwords import published_spellings

DIM, K, T, SEED = 24, 10, 0.1, 114514


def published_subword_vectors(tokenizer, word_vectors) -> np.ndarray:
    members: list[list[int]] = [[] for _ in range(len(tokenizer))]
    for i, key in enumerate(word_vectors.keys):
        word = key[4:] if len(key) > 4 and key[3] == ":" else key
        spaced = word.replace("$", " ")
        if word.startswith("$"):
            third = spaced[1].upper() + spaced[2:]
        else:
            third = " " + spaced[0].upper() + spaced[1:]
        for text in (spaced, " " + spaced, third):
            for subword in set(tokenizer.encode(text, add_special_tokens=False)):
                members[subword].append(i)
    out = np.zeros((len(tokenizer), word_vectors.vectors.shape[1]))
    for subword, rows in enumerate(members):
        if rows:
            out[subword] = sum(word_vectors.vectors[i].astype(np.float64) for i in rows) / len(rows)
    return out


def published_text(tokenizer, vocabulary: dict[str, int], index: int) -> str:
    if sum(token[0] == "▁" for token in vocabulary) > 100:
        return tokenizer.convert_ids_to_tokens(index).replace("▁", " ")
    text = tokenizer.decode(index)
    if sum(token[:2] == "##" for token in vocabulary) > 100:
        return text[2:] if text[:2] == "##" else " " + text
    return text


def published_matches(source, target) -> dict[int, int]:
    source_ids, target_ids = {}, {}
    for tokenizer, ids in ((source, source_ids), (target, target_ids)):
        vocabulary = tokenizer.get_vocab()
        for index in range(len(tokenizer)):
            ids[published_text(tokenizer, vocabulary, index)] = index
    in_lower_case = {}
    for text in sorted(source_ids):
        in_lower_case[text.lower()] = source_ids[text]
    matches = {}
    for text, index in target_ids.items():
        if text in source_ids:
            matches[index] = source_ids[text]
        elif in_lower_case.get(text.lower(), 0) != 0:
            matches[index] = in_lower_case[text.lower()]
    return matches


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.sqrt((vector * vector).sum())
    return vector / length if length > 0 else vector


def published_table(table, source, target, word_vectors):
    """Origins, the dense table, and which rows have a tie at the last neighbour: those are unspecified."""
    source_vectors = published_subword_vectors(source, word_vectors)
    target_vectors = published_subword_vectors(target, word_vectors)
    matches = published_matches(source, target)
    source_units = np.stack([unit(vector) for vector in source_vectors])
    draws = np.random.RandomState(SEED).normal(table.mean(0), table.std(0), (len(target), table.shape[1]))
    origins, tied = np.full(len(target), RANDOM), np.zeros(len(target), dtype=bool)
    out = np.zeros((len(target), table.shape[1]))
    for index in range(len(target)):
        if index in matches:
            origins[index], out[index] = COPIED, table[matches[index]]
        elif not target_vectors[index].any():
            out[index] = draws[index]
        else:
            scores = source_units @ unit(target_vectors[index])
            order = np.argsort(-scores, kind="stable")
            tied[index] = scores[order[K - 1]] - scores[order[K]] < 1e-12
            exponentials = np.exp(scores[order[:K]] / T)
            origins[index] = SIMILAR
            for weight, neighbor in zip(exponentials / exponentials.sum(), order[:K], strict=True):
                out[index] += weight * table[neighbor]
    return origins, out, tied


@pytest.fixture(scope="module")
def table(tokenizers) -> np.ndarray:
    scale = np.linspace(1.5, 0.2, DIM)
    values = np.random.default_rng(3).standard_normal((len(tokenizers["wordpiece"]), DIM)) * scale + 0.1
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["metaspace", "byte-level", "cased wordpiece"])
def test_equal_to_the_published_semantics(tokenizers, word_vectors, table, kind):
    source, target = tokenizers["wordpiece"], tokenizers[kind]
    full, low = initialize(table, source, target, word_vectors, rank=[None, 12], parity=True)
    origins, expected, tied = published_table(table, source, target, word_vectors)
    assert full.origin.tolist() == low.origin.tolist() == origins.tolist()
    assert np.unique(origins).tolist() == [COPIED, SIMILAR, RANDOM]
    assert tied.mean() < 0.1
    np.testing.assert_allclose(full.coordinates.numpy()[~tied], expected[~tied], rtol=1e-5, atol=1e-6)

    directions = np.linalg.svd(table.astype(np.float64), full_matrices=False)[2][:12]
    projection = directions.T @ directions
    kept = ~tied & (origins != RANDOM)
    product = (low.coordinates @ low.basis).numpy()[kept]
    errors = np.linalg.norm(product - expected[kept] @ projection, axis=1)
    assert (errors / np.linalg.norm(expected[kept] @ projection, axis=1)).max() < 1e-4


def test_parity_draws_random_rows_from_the_factorised_rows(tokenizers, word_vectors, table):
    result = initialize(table, tokenizers["wordpiece"], tokenizers["metaspace"], word_vectors, rank=12, parity=True)
    rows = result.source_coordinates.numpy()
    draws = np.random.RandomState(SEED).normal(rows.mean(0), rows.std(0), (len(result.origin), 12))
    drawn = (result.origin == RANDOM).numpy()
    np.testing.assert_array_equal(result.coordinates.numpy()[drawn], draws[drawn].astype(np.float32))


@pytest.mark.parametrize("keys_for_numpy", [0, 65_536])
@pytest.mark.parametrize("extra", [0, 22])
def test_float64_search_decides_what_float32_cannot(monkeypatch, extra, keys_for_numpy):
    """Keys that differ by less than float32 can tell, with and without a screen that keeps more than it needs."""
    monkeypatch.setattr(search, "SCREEN_EXTRA", extra)
    monkeypatch.setattr(search, "KEYS_FOR_NUMPY", keys_for_numpy)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 16, generator=generator, dtype=torch.float64).repeat(200, 1)
    keys += 1e-9 * torch.randn(200, 16, generator=generator, dtype=torch.float64)
    keys = torch.cat([keys, torch.zeros(3, 16, dtype=torch.float64), torch.randn(50, 16, generator=generator).double()])
    queries = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    scores, indices = search.nearest(queries, keys, 5, published=True)
    normal = torch.nn.functional.normalize
    expected = (normal(queries) @ normal(keys).T).sort(dim=1, descending=True, stable=True)
    # What is nearer than 1e-12 counts as equal among more keys than numpy is asked about.
    torch.testing.assert_close(scores, expected.values[:, :5], atol=1e-14 if keys_for_numpy else 1e-12, rtol=0)
    distinct = (expected.values[:, :5] - expected.values[:, 1:6] > (1e-14 if keys_for_numpy else 1e-12)).all(1)
    assert distinct.any()
    assert torch.equal(indices[distinct], expected.indices[distinct, :5])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 1), (2000, 7), (700, 100)])
def test_native_draws_are_those_of_numpy(rows, width, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(rows)
    mean, std = (rng.standard_normal(width).astype(np.float32) for _ in range(2))
    std = np.abs(std)
    expected = np.random.RandomState(7).normal(mean, std, (rows, width))
    for kept in (np.arange(rows), np.flatnonzero(rng.random(rows) < 0.2), np.array([rows - 1])):
        for draw in (_published_natively, _published_by_numpy)[_native.cpu is None :]:
            out = torch.zeros(rows, width)
            draw(out, torch.from_numpy(kept), mean, std, 7)
            assert np.array_equal(out[kept].numpy(), expected[kept].astype(np.float32))
            assert not out[np.setdiff1d(np.arange(rows), kept)].any()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("native", [True, False])
def test_means_are_summed_as_numpy_sums_the_members(tokenizers, word_vectors, monkeypatch, native, threads):
    """One mean of all members of each subword, in the order of the words: equal to the last bit."""
    if not native:
        monkeypatch.setattr(_native, "cpu", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(published_means, "ROWS_AT_ONCE", 7)
    tokenizer = tokenizers["metaspace"]
    members: dict[int, list[int]] = {}
    for i, key in enumerate(word_vectors.keys):
        word = key[4:] if key[3:4] == ":" else key
        for text in published_spellings(word):
            for subword in set(tokenizer.encode(text, add_special_tokens=False)):
                members.setdefault(subword, []).append(i)
    expected = np.zeros((len(tokenizer), word_vectors.vectors.shape[1]))
    for subword, rows in members.items():
        weights = np.ones(len(rows)) / len(rows)
        expected[subword] = (word_vectors.vectors[rows] * weights[:, None]).sum(axis=0)
    np.testing.assert_array_equal(subword_vectors(tokenizer, word_vectors, parity=True), expected)


@pytest.mark.parametrize("extra", [0, 22])
def test_of_equals_among_many_keys_the_first_are_taken(monkeypatch, extra):
    monkeypatch.setattr(search, "SCREEN_EXTRA", extra)
    monkeypatch.setattr(search, "KEYS_FOR_NUMPY", 0)
    generator = torch.Generator().manual_seed(2)
    keys = torch.randn(9, 16, generator=generator, dtype=torch.float64).repeat(40, 1)
    keys[::5] = 0
    queries = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    scores, indices = search.nearest(queries, keys, 5, published=True)
    normal = torch.nn.functional.normalize
    cosines = (normal(queries) @ normal(keys).T).mul(1e12).round().div(1e12)
    expected = cosines.sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices[:, :5])
    torch.testing.assert_close(scores, expected.values[:, :5], atol=1e-12, rtol=0)


def test_what_is_hardly_nearer_is_taken_once(monkeypatch):
    """A key that is nearer by as little as what counts as equal."""
    monkeypatch.setattr(search, "KEYS_FOR_NUMPY", 0)
    queries = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for cosine in torch.linspace(0.2, 0.9, 300, dtype=torch.float64):
        cosines = torch.stack([torch.tensor(0.95, dtype=torch.float64), cosine, cosine + 1e-12, cosine - 0.1])
        keys = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
        _, indices = search.nearest(queries, keys, 2, published=True)
        assert indices[0, 0] == 0 and indices[0, 1] in (1, 2)
        _, indices = search.nearest(queries, keys, 3, published=True)
        assert sorted(indices[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("columns", [1, 2, 100])
def test_moments_in_parts_are_those_of_numpy(monkeypatch, columns):
    monkeypatch.setattr(rows_of_the_table, "ROWS_AT_ONCE", 64)
    values = np.random.default_rng(columns).standard_normal((5001, columns)).astype(np.float32) + 0.1
    mean, std = rows_of_the_table._published_moments(values)
    assert np.array_equal(mean, values.mean(0)) and np.array_equal(std, values.std(0))


@pytest.mark.parametrize("keys_for_numpy", [0, 65_536])
@pytest.mark.parametrize("with_vector", [2, 40])
def test_sources_without_a_vector_are_neighbours_where_the_others_are_opposite(
    monkeypatch, with_vector, keys_for_numpy
):
    monkeypatch.setattr(search, "KEYS_FOR_NUMPY", keys_for_numpy)
    generator = torch.Generator().manual_seed(1)
    keys = torch.zeros(60, 8, dtype=torch.float64)
    keys[:: 60 // with_vector][:with_vector] = (
        torch.rand(with_vector, 8, generator=generator, dtype=torch.float64) + 0.1
    )
    queries = torch.cat([-torch.rand(5, 8, generator=generator), torch.rand(5, 8, generator=generator)]).double()
    scores, _ = search.nearest(queries, keys, 5, published=True)
    normal = torch.nn.functional.normalize
    expected = (normal(queries) @ normal(keys).T).sort(dim=1, descending=True).values[:, :5]
    torch.testing.assert_close(scores, expected, atol=1e-14, rtol=0)
    assert (scores[:5] == 0).all() and (scores[5:, 0] > 0).all()


@pytest.mark.skipif(_native.cpu is None, reason="checks of the native module")
def test_the_native_parts_refuse_what_does_not_fit():
    double = {"dtype": torch.float64}
    sums = {
        "ids": torch.tensor([0, 2]),
        "id_starts": torch.tensor([0, 1, 2]),
        "words": torch.tensor([1, 0]),
        "vectors": torch.ones(2, 3),
        "weights": torch.ones(3, **double),
        "sums": torch.zeros(3, 3, **double),
    }
    draws = {
        "key": torch.zeros(624, dtype=torch.int32),
        "kept": torch.zeros(4, dtype=torch.uint8),
        "mean": torch.zeros(3, **double),
        "std": torch.ones(3, **double),
        "out": torch.zeros(4, 3),
    }
    for call, given, changes in (
        (_native.cpu.subword_sums_add_weighted, sums, {
            "ids": (torch.tensor([0, 3]), r"ids must lie in \[0, 3\), got 3"),
            "id_starts": (torch.tensor([0, 3, 2]), "id_starts must ascend from 0 to 2"),
            "words": (torch.tensor([0, 2]), r"words must lie in \[0, 2\), got 2"),
            "vectors": (torch.ones(3, 3), "vectors must have shape"),
            "sums": (torch.zeros(3, 3), "sums must be float64"),
        }),
        (_native.cpu.legacy_normal_rows, draws, {
            "key": (torch.zeros(623, dtype=torch.int32), "key must have shape"),
            "std": (torch.ones(2, **double), "std must have shape"),
            "out": (torch.zeros(4, 3, **double), "out must be float32"),
        }),
    ):  # fmt: skip
        call(*given.values(), 1)
        for name, (value, message) in changes.items():
            with pytest.raises(ValueError, match=message):
                call(*(given | {name: value}).values(), 1)
