"""A model built for a new vocabulary: the function it computes, its configuration, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import ENCODERS, LANGUAGE_MODEL, TOLERANCE, WIDTH, dense, inputs, outputs, source_model, table
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
)

from ofa_fast import build_model, to_dense

AUTO = (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification)


def test_an_untied_head_gets_a_table_of_its_own(tokenizers, verses):
    tokenizer, source = tokenizers["bert"], source_model("llama", tie_word_embeddings=False)
    result, head = table(260, WIDTH), table(260, WIDTH)
    with pytest.raises(ValueError, match="not tied"):
        build_model(source, result, tokenizer)
    factorized = build_model(source, result, tokenizer, head=head)
    stock = build_model(source, dense(result), tokenizer, head=dense(head))
    batch = inputs(tokenizer, verses[:4])
    assert_close(outputs(factorized, batch), outputs(stock, batch), **TOLERANCE)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *(("t5", {"scale_decoder_outputs": scale}) for scale in (True, False)),  # its configuration always ties
        *((name, {}) for name in ("bert", "roberta", "bart")),
        *((name, {"tie_word_embeddings": False}) for name in ("bert", "roberta")),
    ],
)
def test_a_head_that_is_untied_whatever_the_configuration_says(tokenizers, verses, tmp_path, model_type, changes):
    """Transformers loads both tables of a checkpoint where they differ, as mT5's do."""
    tokenizer, source = tokenizers["bert"], source_model(model_type, **changes)
    own = source.get_output_embeddings()
    own.weight = torch.nn.Parameter(torch.randn_like(own.weight))
    bias = getattr(own, "bias", None)
    result, head = table(260, WIDTH), table(260, WIDTH, bias=bias is not None)
    with pytest.raises(ValueError, match="not tied"):
        build_model(source, result, tokenizer)
    factorized = build_model(source, result, tokenizer, head=head)
    stock = build_model(source, dense(result), tokenizer, head=dense(head))
    assert torch.equal(stock.get_input_embeddings().weight, dense(result).coordinates)
    assert torch.equal(stock.get_output_embeddings().weight, dense(head).coordinates)
    batch = inputs(tokenizer, verses[:4])
    wanted = outputs(stock, batch)
    for name, model in (("factorized", factorized), ("stock", stock), ("dense", to_dense(factorized))):
        assert_close(outputs(model, batch), wanted, **TOLERANCE)
        model.save_pretrained(tmp_path / name)
        loaded = LANGUAGE_MODEL[model_type].from_pretrained(tmp_path / name).eval()
        assert_close(outputs(loaded, batch), wanted, **TOLERANCE)
    factorized(**batch, labels=batch["input_ids"]).loss.backward()
    ends = factorized.get_input_embeddings().coordinates, factorized.get_output_embeddings().coordinates
    assert ends[0] is not ends[1] and all(end.grad.abs().sum() > 0 for end in ends)


@pytest.mark.parametrize("auto", AUTO, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_own_tokenizer_and_own_table_give_the_source_model(model_type, auto, tokenizers, verses):
    tokenizer = tokenizers["bert" if model_type == "bert" else "roberta"]
    source = source_model(model_type, auto, rows=300)
    head = source.get_output_embeddings()
    weight = source.get_input_embeddings().weight.detach()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    bias = None if head is None else head.bias.detach()
    batch = inputs(tokenizer, verses[:4])
    for result in (
        SimpleNamespace(coordinates=weight, basis=None, bias=bias),
        SimpleNamespace(coordinates=u * s, basis=vh, bias=bias),
    ):
        assert_close(outputs(build_model(source, result, tokenizer), batch), outputs(source, batch), **TOLERANCE)


@pytest.mark.parametrize("pad", [0, 1, 4, 70])
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_positions_counted_from_the_padding_id_stay_right_at_any_padding_id(model_type, pad):
    """Tokens are renumbered so that the padding id changes: the model must not notice, at its full length either."""
    source, rows = source_model(model_type, rows=90), 90
    order = torch.randperm(rows)
    source_pad = source.config.pad_token_id
    order[order == source_pad], order[pad] = int(order[pad]), source_pad  # new id -> source id
    new_id = torch.argsort(order)
    tokenizer = SimpleNamespace(__len__=None, pad_token_id=pad, bos_token_id=3, eos_token_id=5)
    tokenizer = type("Tokenizer", (), {**vars(tokenizer), "__len__": lambda self: rows})()
    weight, bias = source.get_input_embeddings().weight.detach(), source.get_output_embeddings().bias.detach()
    result = SimpleNamespace(coordinates=weight[order], basis=torch.eye(WIDTH), bias=bias[order])
    model = build_model(source, result, tokenizer)
    longest = source.config.max_position_embeddings - source_pad - 1
    ids = torch.where(
        torch.arange(longest) < torch.tensor([[longest], [7]]), torch.randint(5, rows, (2, longest)), source_pad
    )
    ids[ids == source_pad] = 8
    ids[1, 7:] = source_pad
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    expected = source(input_ids=ids, attention_mask=mask).logits
    got = model(input_ids=new_id[ids], attention_mask=mask).logits
    assert_close(got[mask.bool()][:, new_id], expected[mask.bool()], **TOLERANCE)
    assert model.config.max_position_embeddings - pad == source.config.max_position_embeddings - source_pad


def test_configuration_follows_the_target_tokenizer(tokenizers):
    source = source_model("xlm-roberta", type_vocab_size=2)
    source.config.tokenizer_class = "XLMRobertaTokenizer"
    model = build_model(source, table(288, 5), tokenizers["bert"])
    config = model.config
    assert (config.model_type, config.source_model_type, config.rank) == ("ofa-fast", "xlm-roberta", 5)
    assert (config.vocab_size, config.type_vocab_size) == (288, 2)
    special = tokenizers["bert"].convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]"])
    assert [config.pad_token_id, config.bos_token_id, config.eos_token_id] == special
    assert getattr(config, "tokenizer_class", None) is None
    assert model.get_input_embeddings().padding_idx == config.pad_token_id
    assert source.config.model_type == "xlm-roberta" and source.config.vocab_size == 300


def test_decoder_start_follows_the_special_token_it_is(tokenizers):
    source = source_model("t5", pad_token_id=7, decoder_start_token_id=7)
    model = build_model(source, table(260, 4), tokenizers["roberta"])
    assert model.config.decoder_start_token_id == model.config.pad_token_id == tokenizers["roberta"].pad_token_id


def test_bias_moves_with_its_token_and_is_zero_without_one(tokenizers):
    source, result = source_model("roberta"), table(260, 4, bias=True)
    model = build_model(source, result, tokenizers["roberta"])
    assert_close(model.get_output_embeddings().bias.detach(), result.bias)
    assert model.lm_head.bias is model.lm_head.decoder.bias
    result.bias = None
    assert not build_model(source, result, tokenizers["roberta"]).get_output_embeddings().bias.any()
    assert not build_model(source, dense(result), tokenizers["roberta"]).get_output_embeddings().bias.any()


def test_source_is_copied_and_left_alone(tokenizers):
    source = source_model("bert").train()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    model = build_model(source, table(260, 4), tokenizers["bert"])
    assert model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_close(dict(source.state_dict()), before)


def test_dtype_follows_the_source(tokenizers, verses):
    model = build_model(source_model("bert").bfloat16(), table(260, 4), tokenizers["bert"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert outputs(model, inputs(tokenizers["bert"], verses[:2])).dtype == torch.bfloat16


def test_same_seed_gives_the_same_model(tokenizers):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        source = LANGUAGE_MODEL["bert"].from_config(source_model("bert").config)
        states.append(build_model(source, table(260, 4), tokenizers["bert"]).state_dict())
    assert_close(dict(states[0]), dict(states[1]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (table(250, 4), "260 tokens, but result.coordinates has 250 rows"),
        (table(260, 4, width=WIDTH + 1), "width 17, but the model's width is 16"),
        (dense(table(250, 4)), "260 tokens, but result.coordinates has 250 rows"),
        (dense(table(260, 4, width=WIDTH + 1)), "width 17, but the model's width is 16"),
    ],
)
def test_tables_that_do_not_fit_are_refused(result, message, tokenizers):
    with pytest.raises(ValueError, match=message):
        build_model(source_model("bert"), result, tokenizers["bert"])


def test_a_bias_needs_a_head_with_bias(tokenizers):
    with pytest.raises(ValueError, match="head has none"):
        build_model(source_model("gpt2"), table(260, 4, bias=True), tokenizers["bert"])


def test_counted_positions_need_a_padding_token(tokenizers):
    class NoPadding:
        pad_token_id = None

        def __len__(self):
            return 260

    with pytest.raises(ValueError, match="no padding token"):
        build_model(source_model("roberta"), table(260, 4), NoPadding())


class OddEmbedding(torch.nn.Embedding):
    pass


class OddlyEmbeddedBert(BertForMaskedLM):
    def __init__(self, config):
        super().__init__(config)
        self.set_input_embeddings(OddEmbedding(config.vocab_size, config.hidden_size))


def test_embeddings_that_do_more_than_scale_are_refused(tokenizers):
    source = OddlyEmbeddedBert(source_model("bert").config)
    source.tie_weights()
    with pytest.raises(ValueError, match="OddlyEmbeddedBert embeds through OddEmbedding"):
        build_model(source, table(260, 4), tokenizers["bert"])
