"""Initialisation from a source table on each device that there is."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import ofa_fast
from ofa_fast.cli import main
from ofa_fast.initialization import initialize
from ofa_fast.initialization.result import RANDOM

DIM = 32


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def table(tokenizers) -> torch.Tensor:
    """Its spectrum falls, so that its singular vectors are well determined."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(tokenizers["wordpiece"]), DIM, generator=generator) * torch.linspace(2, 0.1, DIM) + 0.3


@pytest.fixture(scope="module")
def vocabularies(tokenizers, word_vectors):
    return tokenizers["wordpiece"], tokenizers["metaspace"], word_vectors


def assert_same(ours, true, tolerance: float) -> None:
    for name in ("origin", "sources", "neighbors"):
        assert torch.equal(getattr(ours, name), getattr(true, name)), name
    for name in ("coordinates", "basis", "weights", "bias", "source_coordinates"):
        found, expected = getattr(ours, name), getattr(true, name)
        assert (found is None) == (expected is None), name
        if found is not None:
            assert (found.device.type, found.dtype) == ("cpu", torch.float32), name
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert ours.report["explained_variance"] == pytest.approx(true.report["explained_variance"], abs=1e-6)


@pytest.mark.parametrize("method", ["ofa", "wechsel", "focus", "mean", "random"])
def test_a_table_is_that_of_the_cpu(device, method, table, vocabularies):
    options = {"rank": [8, None], "method": method, "source_bias": torch.linspace(-1, 1, len(table))}
    true = initialize(table, *vocabularies, **options)
    options["source_bias"] = options["source_bias"].to(device)
    for ours, expected in zip(initialize(table.to(device), *vocabularies, **options), true, strict=True):
        assert_same(ours, expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(device, dtype, table, vocabularies):
    rounded = table.to(dtype)
    true = initialize(rounded.float(), *vocabularies, rank=8)
    assert_same(initialize(rounded.to(device), *vocabularies, rank=8), true, 1e-4)


def test_rows_drawn_by_a_covariance_have_it(device, table, vocabularies):
    """Its eigenvectors, and so the single draws, are free up to their signs."""
    true = initialize(table, *vocabularies, rank=None, method="gaussian")
    ours = initialize(table.to(device), *vocabularies, rank=None, method="gaussian")
    kept, drawn = true.origin != RANDOM, true.origin == RANDOM
    assert torch.equal(ours.coordinates[kept], true.coordinates[kept])
    values = ours.coordinates[drawn].double()
    torch.testing.assert_close(values.mean(0), table.double().mean(0), rtol=0, atol=0.4)
    torch.testing.assert_close(values.std(0), table.double().std(0), rtol=0.25, atol=0)


def test_parity_works_on_the_cpu(device, table, vocabularies):
    true = initialize(table, *vocabularies, rank=8, parity=True)
    assert torch.equal(initialize(table.to(device), *vocabularies, rank=8, parity=True).coordinates, true.coordinates)


def test_a_cache_gives_what_was_computed(device, table, vocabularies, tmp_path):
    plain, made, found = (
        initialize(table.to(device), *vocabularies, rank=[8, 16], cache=cache) for cache in (None, tmp_path, tmp_path)
    )
    for one, *others in zip(plain, made, found, strict=True):
        for other in others:
            assert torch.equal(one.coordinates, other.coordinates) and torch.equal(one.basis, other.basis)


@pytest.fixture(scope="module")
def folders(tokenizers, tmp_path_factory):
    """A source model with its tokenizer, and a target tokenizer."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    sizes = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizers["wordpiece"]), **sizes)).save_pretrained(source)
    tokenizers["wordpiece"].save_pretrained(source)
    tokenizers["metaspace"].save_pretrained(target)
    return "--source", str(source), "--tokenizer", str(target)


def test_the_command_line_takes_a_device(device, folders, tmp_path, monkeypatch):
    seen = []

    def spy(table, *args, **options):
        seen.append(table.device.type)
        return initialize(table, *args, **options)

    monkeypatch.setattr(ofa_fast, "initialize", spy)
    command = ["init", *folders, "--method", "mean", "--rank", "8", "--no-cache"]
    assert main([*command, "--device", device, "--out", str(tmp_path / "out")]) == 0
    assert seen == [device] and (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named_first(name, folders, tmp_path, capsys):
    command = ["init", *folders, "--vectors", "none.vec", "--device", name, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"error: device: '{name}' cannot be used here (" in capsys.readouterr().err


def test_a_bad_row_is_named(device, table, vocabularies):
    table = table.to(device, copy=True)
    table[7, 3] = torch.inf
    with pytest.raises(ValueError, match="row 7 holds NaN or infinity"):
        initialize(table, *vocabularies, rank=8)
