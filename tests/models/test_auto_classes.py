"""Every head that transformers' Auto classes have for an architecture, from one mechanism."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BATCH, LABELS, LANGUAGE_MODEL, TOLERANCE, dense, source_model, table
from torch.testing import assert_close
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from ofa_fast import FactorizedEmbedding, FactorizedHead, build_model, to_dense

IDS = BATCH["input_ids"]
CLASSES, TAGS = torch.tensor([0, 1]), IDS % 2
OF_HEAD = {  # what each Auto class's head is trained with
    "": {},
    "TextEncoding": {},
    "MaskedLM": {"labels": LABELS},
    "CausalLM": {"labels": LABELS},
    "Seq2SeqLM": {"labels": LABELS},
    "SequenceClassification": {"labels": CLASSES},
    "TokenClassification": {"labels": TAGS},
    "QuestionAnswering": {"start_positions": CLASSES, "end_positions": CLASSES + 2},
    "MultipleChoice": {"labels": CLASSES},
    "NextSentencePrediction": {"labels": CLASSES},
    "PreTraining": {"labels": LABELS},
}
PRETRAINING = {
    "bert": {"labels": LABELS, "next_sentence_label": CLASSES},
    "albert": {"labels": LABELS, "sentence_order_label": CLASSES},
    "electra": {"labels": TAGS},
}


def cases() -> list:
    """An architecture and a head: each of its model classes once, by the last Auto class that names it."""
    for model_type in LANGUAGE_MODEL:
        config, found = type(AutoConfig.for_model(model_type)), {}
        for head in OF_HEAD:
            mapping = getattr(modeling_auto, f"AutoModel{'For' * bool(head)}{head}")._model_mapping
            if mapping.get(config, None):
                found.setdefault(mapping[config], head)
        yield from (pytest.param(model_type, head, id=f"{model_type}-{head or 'plain'}") for head in found.values())


@pytest.mark.parametrize(("model_type", "head"), cases())
def test_head_computes_trains_saves_loads_and_exports(model_type, head, tokenizers, tmp_path):
    auto = getattr(modeling_auto, f"AutoModel{'For' * bool(head)}{head}")
    changes = {"is_decoder": True} if head == "CausalLM" and LANGUAGE_MODEL[model_type] is not auto else {}
    source = source_model(model_type, auto, **changes)
    output, width = source.get_output_embeddings(), source.get_input_embeddings().embedding_dim
    result = table(264, 5, width, bias=getattr(output, "bias", None) is not None)
    model = build_model(source, result, tokenizers["bert"])
    stock = build_model(source, dense(result), tokenizers["bert"])
    assert isinstance(model.get_input_embeddings(), FactorizedEmbedding)
    assert output is None or isinstance(model.get_output_embeddings(), FactorizedHead)
    assert type(stock) is type(source)

    batch = {"input_ids": IDS}
    if head == "MultipleChoice":
        batch = {"input_ids": torch.stack([IDS, IDS.flip(1)], 1)}
    if source.config.is_encoder_decoder and head in ("", "Seq2SeqLM"):
        batch["decoder_input_ids"] = IDS

    def outputs(model):
        return [value for value in model(**batch).to_tuple() if isinstance(value, torch.Tensor)]

    assert_close(outputs(model), outputs(stock), **TOLERANCE)
    model.save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values())
    assert_close(outputs(loaded), outputs(model), rtol=1e-6, atol=1e-7)  # where weights lie decides a last bit
    exported = to_dense(model)
    assert type(exported) is type(source)
    assert_close(outputs(exported), outputs(model), **TOLERANCE)

    labels = PRETRAINING.get(model_type, OF_HEAD[head]) if head == "PreTraining" else OF_HEAD[head]
    if labels:
        loss = model(**batch, **labels).loss
        assert_close(loss, stock(**batch, **labels).loss)
        loss.backward()
        assert model.get_input_embeddings().basis.grad.any()

    fresh = auto.from_config(model.config)
    assert all(value.device.type == "cpu" and value.isfinite().all() for value in fresh.state_dict().values())
    assert 0.01 < fresh.get_input_embeddings().weight.std() < 0.04
