"""What ``ofa-fast init`` says about its work: pages, warnings, and what a token was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from ofa_fast import WordVectors, initialize
from ofa_fast.cli import main

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
ENGLISH = ["the", *(f"word{i}" for i in range(150))]
GERMAN = ["das", *(f"wort{i}" for i in range(150))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny English model, a tokenizer of some of its words and of German ones, and word vectors."""
    place = tmp_path_factory.mktemp("report")
    for name, words in (("source", ENGLISH), ("tokenizer", ENGLISH[:60] + GERMAN)):
        vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(place / name)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(ENGLISH) + 3, **sizes)).save_pretrained(place / "source")
    vectors = np.random.default_rng(0).standard_normal((len(ENGLISH), 16)).astype(np.float32)
    languages = ["eng"] * len(ENGLISH) + ["deu"] * len(GERMAN)
    WordVectors(ENGLISH + GERMAN, np.concatenate([vectors, vectors]), languages).save(place / "v.safetensors")
    return place


def init(place: Path, out: Path, *more: str) -> list[str]:
    return [
        *("init", "--source", str(place / "source"), "--tokenizer", str(place / "tokenizer")),
        *("--vectors", str(place / "v.safetensors"), "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def initialised(place) -> Path:
    assert main(init(place, place / "initialised", "--rank", "8,full")) == 0
    return place / "initialised"


def refusal(arguments: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_writes_pages_that_tell_the_command(initialised, place):
    for folder, ranks in (("", "ranks 8, 32 (full)"), ("rank-8", "rank 8"), ("rank-full", "rank 32 (full)")):
        page = (initialised / folder / "initialization.html").read_text("utf-8")
        assert f"<title>Initialisation at {ranks}</title>" in page and "source → tokenizer" in page
    report = json.loads((initialised / "rank-8" / "initialization.json").read_text("utf-8"))
    assert report["command"].startswith(f"ofa-fast init --source {place / 'source'} ")
    assert report["inputs"]["vectors"] == str(place / "v.safetensors") and report["memory"]["peak"] > 2**20


def test_explains_tokens(initialised, place, tmp_path, capsys):
    capsys.readouterr()
    out = ["--out", str(initialised)]
    assert main(["init", *out, "--explain", "the", "200", "--vectors", str(place / "v.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "copied" in said and "id 200, " in said and "the (eng)" in said
    similar = int((load_file(initialised / "rank-8" / "initialization.safetensors")["origin"] == 1).nonzero()[0])
    assert main(["init", *out, "--explain", str(similar)]) == 0
    assert "weight" in capsys.readouterr().out
    assert "no token 'wxyz'" in refusal(["init", *out, "--explain", "wxyz"], capsys)
    assert "no complete initialisation" in refusal(["init", "--out", str(tmp_path), "--explain", "the"], capsys)
    assert "--source is missing" in refusal(["init", *out], capsys)
    assert "--dry-run" in refusal(init(place, tmp_path / "x", "--dry-run", "--explain", "the"), capsys)


def test_without_vectors_warns_and_explains(place, tmp_path, capsys):
    words = ["init", "--source", str(place / "source"), "--tokenizer", str(place / "tokenizer"), "--rank", "8"]
    assert main([*words, "--method", "random", "--out", str(tmp_path / "out"), "--explain", "the"]) == 0
    captured = capsys.readouterr()
    assert "ofa-fast: warning: Only " in captured.err and "the row of the source's" in captured.out


def _llama(vocab_size: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=False, **sizes))


def _t5(vocab_size: int) -> T5ForConditionalGeneration:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=vocab_size, **sizes))
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))  # though T5's configuration ties
    return model


@pytest.mark.parametrize(
    ("make", "auto"), [(_llama, AutoModelForCausalLM), (_t5, AutoModelForSeq2SeqLM)], ids=["llama", "t5"]
)
def test_init_makes_the_table_of_an_untied_head(place, tmp_path, capsys, make, auto):
    source_tokenizer, tokenizer = (AutoTokenizer.from_pretrained(place / name) for name in ("source", "tokenizer"))
    model = make(len(source_tokenizer))
    model.save_pretrained(tmp_path / "source")
    source_tokenizer.save_pretrained(tmp_path / "source")
    more = ("--source", str(tmp_path / "source"), "--rank", "8,full")
    if not model.config.tie_word_embeddings:
        assert main(init(place, tmp_path / "out", *more, "--dry-run")) == 0
        inner = sum(p.numel() for p in model.parameters()) - 2 * len(source_tokenizer) * 32
        whole = (inner + 2 * 32 * len(tokenizer)) / 1e6
        assert f"model {whole:,.1f} M" in capsys.readouterr().out.split("rank-full")[1]
    assert main(init(place, tmp_path / "out", *more)) == 0
    assert "rows at both ends" in capsys.readouterr().out
    words = WordVectors.load(place / "v.safetensors")
    for name, rank in (("rank-8", 8), ("rank-full", None)):
        made, loading = auto.from_pretrained(tmp_path / "out" / name, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        ends = [(model.get_input_embeddings(), made.get_input_embeddings())]
        ends.append((model.get_output_embeddings(), made.get_output_embeddings()))
        for table, own in ends:
            wanted = initialize(table.weight.detach(), source_tokenizer, tokenizer, words, rank=rank)
            assert torch.equal(own.weight if rank is None else own.coordinates, wanted.coordinates)
        assert json.loads((tmp_path / "out" / name / "initialization.json").read_text())["head"]["seconds"]
