"""The real MiniLM, which comes without a masked-LM head."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ofa_fast import build_model

TEXTS = ["In the beginning God created the heavens and the earth.", "Am Anfang schuf Gott Himmel und Erde."]


def test_minilm_keeps_its_outputs_and_its_seeded_head(minilm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    batch = {name: tensor for name, tensor in tokenizer(TEXTS, return_tensors="pt", padding=True).items()}
    logits = []
    for _ in range(2):
        torch.manual_seed(0)
        source = AutoModelForMaskedLM.from_pretrained(minilm).eval()
        table = source.get_input_embeddings().weight.detach()
        result = SimpleNamespace(coordinates=table, basis=None, bias=None)
        logits.append(build_model(source, result, tokenizer)(**batch).logits)
    assert_close(logits[0], source(**batch).logits, rtol=0, atol=1e-5)
    assert_close(logits[0], logits[1], rtol=0, atol=0)

    basis = torch.linalg.qr(torch.randn(table.shape[1], table.shape[1])).Q
    result = SimpleNamespace(coordinates=table @ basis.T, basis=basis, bias=None)
    model = build_model(source, result, tokenizer)
    assert_close(model.base_model(**batch)[0], source.base_model(**batch)[0], rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)
