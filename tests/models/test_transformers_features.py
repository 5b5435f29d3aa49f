"""What people do with models of transformers, done with factorised ones: an encoder, decoders, encoder-decoders."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors import safe_open
from tiny_models import BATCH, LABELS, LANGUAGE_MODEL, built, outputs
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

from ofa_fast import to_dense

KINDS = {
    "xlm-roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {"tie_word_embeddings": False},
    "gemma": {},
    "t5": {"dropout_rate": 0.0},
    "mbart": {"dropout": 0.0},
}
EXACT = {"rtol": 0, "atol": 0}
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind, tokenizers, **changes):
    return built(kind, tokenizers, **KINDS[kind] | changes)


def loss(model):
    return model(**BATCH, labels=LABELS).loss


def saved_and_loaded(model, folder, **options):
    model.save_pretrained(folder)
    auto = LANGUAGE_MODEL[model.config.source_model_type]
    loaded, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values())
    return loaded


@kinds
@pytest.mark.parametrize("device_map", [None, "cpu", "auto", {"": "cpu"}], ids=str)
def test_shards_load_to_where_the_device_map_says(kind, device_map, tokenizers, tmp_path):
    model = made(kind, tokenizers)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 3
    assert (tmp_path / "model.safetensors.index.json").exists() and not (tmp_path / "model.safetensors").exists()
    loaded = LANGUAGE_MODEL[kind].from_pretrained(tmp_path, device_map=device_map)
    assert_close(outputs(loaded, BATCH), outputs(model, BATCH), **EXACT)
    assert_close(loss(loaded), loss(model), **EXACT)


@pytest.mark.parametrize(
    ("kind", "device_map"),
    [
        ("gemma", {"model": "disk", "lm_head": "disk"}),
        ("modernbert", {"model": "disk", "head": "disk", "decoder": "disk"}),
        ("xlm-roberta", {"roberta.embeddings": "cpu", "roberta.encoder": "disk", "lm_head": "cpu"}),
    ],
)
def test_offloaded_parts_are_there_when_the_loss_is_taken(kind, device_map, tokenizers, tmp_path):
    model, options = built(kind, tokenizers), {"device_map": device_map, "offload_folder": tmp_path / "offloaded"}
    model.save_pretrained(tmp_path / "model")
    loaded = LANGUAGE_MODEL[kind].from_pretrained(tmp_path / "model", **options)
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    assert_close(outputs(loaded, BATCH), outputs(model, BATCH), **EXACT)
    assert_close(loss(loaded), loss(model), **EXACT)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights(kind, dtype, tokenizers, tmp_path):
    exact = made(kind, tokenizers)
    model = copy.deepcopy(exact).to(dtype)
    assert outputs(model, BATCH).dtype == dtype
    loss(model).backward()
    assert_close(loss(model), loss(exact), rtol=0.02, atol=0.05, check_dtype=False)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 10 and all(grad.dtype == dtype and grad.isfinite().all() for grad in gradients)
    for asked, got in (("auto", dtype), (dtype, dtype), (torch.float32, torch.float32)):
        embedding = saved_and_loaded(model, tmp_path, dtype=asked).get_input_embeddings()
        assert_close(embedding.coordinates, model.get_input_embeddings().coordinates.to(got), **EXACT)


@kinds
def test_autocast(kind, tokenizers):
    model = made(kind, tokenizers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss(model)
        assert model.get_output_embeddings()(torch.randn(2, 16)).dtype == torch.bfloat16
    assert_close(mixed, loss(model), rtol=0.02, atol=0.05)
    mixed.backward()
    assert model.get_input_embeddings().basis.grad.isfinite().all()


@kinds
def test_gradient_checkpointing_changes_nothing(kind, tokenizers):
    model, gradients = made(kind, tokenizers).train(), []
    for _ in range(2):
        model.zero_grad()
        loss(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert_close(*gradients)


@pytest.mark.parametrize("kind", ["xlm-roberta", "gemma", "mbart"])
def test_compiles_in_one_graph_after_a_step(kind, tokenizers):
    layers = {"encoder_layers": 1, "decoder_layers": 1} if kind == "mbart" else {"num_hidden_layers": 1}
    model = made(kind, tokenizers, **layers)
    expected = loss(model), outputs(model, BATCH)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close((loss(compiled), outputs(compiled, BATCH)), expected)
    loss(compiled).backward()
    assert model.get_input_embeddings().basis.grad.any()


@kinds
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_tied_as_the_model_is(kind, duplicate, tokenizers):
    model = made(kind, tokenizers)
    twin = duplicate(model)
    assert twin.config.to_dict() == model.config.to_dict()
    tied = twin.get_output_embeddings().coordinates is twin.get_input_embeddings().coordinates
    assert tied == model.config.tie_word_embeddings
    assert_close(outputs(twin, BATCH), outputs(model, BATCH), **EXACT)


@kinds
def test_resizing_goes_up_down_and_to_a_multiple(kind, tokenizers, tmp_path):
    model = made(kind, tokenizers)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert model.resize_token_embeddings() is embedding and embedding.num_embeddings == 264
    for rows, multiple, expected in ((270, None, 270), (265, 8, 272), (None, 64, 320), (260, None, 260), (100, 1, 100)):
        before = embedding.coordinates.detach().clone()
        resized = model.resize_token_embeddings(rows, pad_to_multiple_of=multiple)
        assert model.get_input_embeddings() is resized and model.get_output_embeddings() is head
        assert resized.num_embeddings == len(resized.coordinates) == model.config.vocab_size == expected
        assert (len(head.coordinates) == expected and head.bias is None) or len(head.bias) == expected
        kept = min(expected, len(before))
        assert_close(resized.coordinates[:kept].detach(), before[:kept], **EXACT)
        if expected > kept:
            assert_close(resized.coordinates[-1].detach(), before.mean(0))
        assert outputs(model, BATCH).shape[-1] == expected
        model.zero_grad()
        loss(model).backward()
        assert head.coordinates.grad.shape == (expected, 5)
    assert_close(outputs(saved_and_loaded(model, tmp_path), BATCH), outputs(model, BATCH), **EXACT)
    model.resize_token_embeddings(400, mean_resizing=False)
    assert 0.3 < embedding.coordinates[100:].std() < 0.6  # rank ** -0.5 = 0.45


@kinds
def test_another_table_can_be_put_in_and_tied(kind, tokenizers, tmp_path):
    model = made(kind, tokenizers)
    head, own = model.get_output_embeddings(), model.get_output_embeddings().basis
    other = copy.deepcopy(model.get_input_embeddings())
    other.basis = torch.nn.Parameter(torch.randn(5, 16))
    if model.config.tie_word_embeddings:  # both ends have one rank
        other.rank, other.basis = 3, torch.nn.Parameter(torch.randn(3, 16))
        other.coordinates = torch.nn.Parameter(torch.randn(264, 3))
    model.set_input_embeddings(other)
    model.tie_weights()
    assert model.get_input_embeddings() is other and model.config.rank == other.rank
    assert head.basis is (other.basis if model.config.tie_word_embeddings else own)
    loss(model).backward()
    assert other.basis.grad.any()
    assert_close(outputs(saved_and_loaded(model, tmp_path), BATCH), outputs(model, BATCH), **EXACT)
    with pytest.raises(TypeError, match="must be a FactorizedEmbedding, got Embedding"):
        model.set_input_embeddings(other.materialize())


@pytest.mark.parametrize("kind", ["llama", "gemma", "t5", "mbart", "gpt2", "gemma3_text", "bart"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 5}],
    ids=str,
)
def test_generates_what_the_dense_model_does(kind, options, tokenizers):
    model, texts = built(kind, tokenizers, **KINDS.get(kind, {})), []
    for one in (model, to_dense(model)):
        torch.manual_seed(0)
        texts.append(one.generate(**BATCH, max_new_tokens=6, **{"do_sample": False} | options))
    assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("task", "kind", "auto", "text", "options"),
    [
        ("fill-mask", "xlm-roberta", None, "In the [MASK] .", {"top_k": 3}),
        ("text-generation", "llama", None, "In the beginning", {"max_new_tokens": 4, "do_sample": False}),
        ("feature-extraction", "xlm-roberta", AutoModel, "In the beginning", {}),
        ("text-classification", "llama", AutoModelForSequenceClassification, "In the beginning", {}),
        ("token-classification", "t5", AutoModelForTokenClassification, "In the beginning", {}),
    ],
)
def test_pipelines_give_what_they_give_of_the_dense_model(task, kind, auto, text, options, tokenizers):
    model = built(kind, tokenizers, auto)
    ours, stock = (
        pipeline(task, model=one, tokenizer=tokenizers["bert"], device="cpu")(text, **options)
        for one in (model, to_dense(model))
    )
    assert ours and pytest.approx(flat(ours), abs=1e-5) == flat(stock)


def flat(found) -> list:
    """The numbers, and what else there is, in nested lists and dicts."""
    if isinstance(found, dict):
        found = list(found.values())
    return [leaf for part in found for leaf in flat(part)] if isinstance(found, list) else [found]


TABLES = {  # names in the folders that have been written so far; what is here has to stay
    "bert": {"bert.embeddings.word_embeddings.": ("coordinates", "basis"), "cls.predictions.": ("bias",)},
    "xlm-roberta": {"roberta.embeddings.word_embeddings.": ("coordinates", "basis"), "lm_head.": ("bias",)},
    "llama": {"model.embed_tokens.": ("coordinates", "basis"), "lm_head.": ("coordinates", "basis")},
    "gemma": {"model.embed_tokens.": ("coordinates", "basis")},
    "t5": {"shared.": ("coordinates", "basis")},
    "mbart": {"model.shared.": ("coordinates", "basis"), "": ("final_logits_bias",)},
}


@pytest.mark.parametrize("kind", TABLES)
def test_names_in_the_folder_are_stock_but_for_the_table(kind, tokenizers, tmp_path):
    model = built(kind, tokenizers, **KINDS.get(kind, {}))
    names = []
    for folder, one in ((tmp_path / "ours", model), (tmp_path / "stock", to_dense(model))):
        one.save_pretrained(folder)
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        names.append({name for name, shape in shapes.items() if 264 not in shape and not name.endswith(".basis")})
        tables = {name for name in shapes if name not in names[-1]}
        if one is model:
            assert tables == {module + name for module, found in TABLES[kind].items() for name in found}
    assert names[0] == names[1]
