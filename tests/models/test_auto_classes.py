"""Every head that transformers' Auto classes have for an architecture, from one mechanism."""

from __future__ import annotations

import pytest
import torch
from tiny_models import LANGUAGE_MODEL, dense, source_model, table
from torch.testing import assert_close
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from ofa_fast import FactorizedEmbedding, FactorizedHead, build_model, to_dense

IDS = torch.tensor([[5, 9, 31, 7, 3], [8, 6, 4, 2, 3]])  # BART's classifiers read the last [SEP], 3
CLASSES, TAGS = torch.tensor([0, 1]), IDS % 2
LANGUAGE = torch.where(IDS > 4, IDS, -100)
LABELS = {  # of each Auto class's head
    "": {},
    "TextEncoding": {},
    "MaskedLM": {"labels": LANGUAGE},
    "CausalLM": {"labels": LANGUAGE},
    "Seq2SeqLM": {"labels": LANGUAGE},
    "SequenceClassification": {"labels": CLASSES},
    "TokenClassification": {"labels": TAGS},
    "QuestionAnswering": {"start_positions": CLASSES, "end_positions": CLASSES + 2},
    "MultipleChoice": {"labels": CLASSES},
    "NextSentencePrediction": {"labels": CLASSES},
    "PreTraining": {"labels": LANGUAGE},
}
PRETRAINING = {
    "bert": {"labels": LANGUAGE, "next_sentence_label": CLASSES},
    "albert": {"labels": LANGUAGE, "sentence_order_label": CLASSES},
    "electra": {"labels": TAGS},
}


def cases() -> list:
    """An architecture and a head: each of its model classes once, by the last Auto class that names it."""
    for model_type in LANGUAGE_MODEL:
        config, found = type(AutoConfig.for_model(model_type)), {}
        for head in LABELS:
            mapping = getattr(modeling_auto, f"AutoModel{'For' * bool(head)}{head}")._model_mapping
            if mapping.get(config, None):
                found.setdefault(mapping[config], head)
        yield from (pytest.param(model_type, head, id=f"{model_type}-{head or 'plain'}") for head in found.values())


@pytest.mark.parametrize(("model_type", "head"), cases())
def test_head_computes_saves_loads_and_exports(model_type, head, tokenizers, tmp_path):
    auto = getattr(modeling_auto, f"AutoModel{'For' * bool(head)}{head}")
    changes = {"is_decoder": True} if head == "CausalLM" and LANGUAGE_MODEL[model_type] is not auto else {}
    source = source_model(model_type, auto, **changes)
    output, width = source.get_output_embeddings(), source.get_input_embeddings().embedding_dim
    result = table(260, width, width, bias=getattr(output, "bias", None) is not None)
    model = build_model(source, result, tokenizers["bert"])
    stock = build_model(source, dense(result), tokenizers["bert"])
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    assert output is None or isinstance(model.get_output_embeddings(), FactorizedHead)
    assert type(stock) is type(source) is type(to_dense(model))

    batch = {"input_ids": IDS}
    if head == "MultipleChoice":
        batch = {"input_ids": IDS[:, None].repeat(1, 2, 1)}
        batch["input_ids"][:, 1, 1] = 11
    labels = PRETRAINING.get(model_type, LABELS[head]) if head == "PreTraining" else LABELS[head]
    if source.config.is_encoder_decoder and head in ("", "Seq2SeqLM"):
        batch["decoder_input_ids"] = IDS
    model.eval(), stock.eval()
    expected = stock(**batch)
    assert_close(model(**batch).to_tuple()[0], expected.to_tuple()[0], rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values())
    assert_close(loaded(**batch).to_tuple()[0], model(**batch).to_tuple()[0], rtol=0, atol=0)
    assert_close(to_dense(model).eval()(**batch).to_tuple()[0], expected.to_tuple()[0], rtol=0, atol=1e-5)
    if labels:
        loss = model(**batch, **labels).loss
        assert_close(loss, stock(**batch, **labels).loss, rtol=1e-5, atol=1e-5)
        loss.backward()
        assert model.get_input_embeddings().basis.grad.any()
