"""Folders in the layout of the published OFA checkpoints, such as yihongLiu/ofa-multi-100."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import WIDTH, source_model
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification
from transformers.activations import gelu

from ofa_fast import to_dense
from ofa_fast.models import load_published

ROWS, RANK = 90, 5
TOLERANCE = {"rtol": 0, "atol": 1e-5}
IDS = torch.tensor([[0, 9, 31, 7, 2], [0, 8, 2, 1, 1]])
MASK = IDS.ne(1).long()
BASIS, COORDINATES = "embeddings.primitive_embeddings.weight", "embeddings.target_coordinates.weight"
HEAD = {BASIS: "lm_head.down_project.weight", COORDINATES: "lm_head.vocab_project.weight"}


def published(folder, model_type="xlm-roberta", file="pytorch_model.bin", names="both", shard_by=None, **changes):
    """Writes such a folder from a stock model of random weights; returns that model and the published tensors."""
    stock = source_model(model_type, rows=ROWS)
    state = {name: tensor for name, tensor in stock.state_dict().items() if "word_embeddings" not in name}
    for name in [name for name in state if name.startswith(("lm_head.decoder.", "lm_head.bias"))]:
        del state[name]
    tensors = {BASIS: torch.randn(WIDTH, RANK) / 2, COORDINATES: torch.randn(ROWS, RANK) / RANK**0.5}
    for name, tensor in tensors.items():
        if names in ("both", "embeddings"):
            state[f"roberta.{name}"] = tensor
        if names in ("both", "lm_head"):
            state[HEAD[name]] = tensor
    tensors["bias"] = state["lm_head.vocab_project.bias"] = torch.randn(ROWS)
    state |= changes.pop("state", {})
    config = stock.config.to_dict() | {"num_primitive": RANK, "architectures": [f"{model_type}Assembled"]} | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards = [state]
    if shard_by is not None:
        shards = [{n: t for n, t in state.items() if (shard_by in n) == chosen} for chosen in (False, True)]
        files = [file.replace(".", f"-{i}-of-2.", 1) for i in (1, 2)]
        index = {name: shard_file for shard_file, shard in zip(files, shards, strict=True) for name in shard}
        (folder / f"{file}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for path, shard in zip([file] if shard_by is None else files, shards, strict=True):
        if file.endswith("bin"):
            torch.save(shard, folder / path)
        else:
            save_file({name: tensor.clone() for name, tensor in shard.items()}, folder / path, {"format": "pt"})
    return stock, tensors


def published_logits(stock, tensors):
    """The published forward pass, by hand: E[ids] = F[ids] W^T into the encoder, (h W) F^T + b out of the head."""
    basis, coordinates = tensors[BASIS], tensors[COORDINATES]
    positions = torch.where(IDS.ne(1), IDS.ne(1).cumsum(1) + 1, 1)
    hidden = stock.roberta(inputs_embeds=coordinates[IDS] @ basis.T, attention_mask=MASK, position_ids=positions)[0]
    features = stock.lm_head.layer_norm(gelu(stock.lm_head.dense(hidden)))
    return hidden, (features @ basis) @ coordinates.T + tensors["bias"]


@pytest.mark.parametrize(
    ("file", "names", "shard_by"),
    [
        ("pytorch_model.bin", "both", None),
        ("model.safetensors", "embeddings", None),
        ("model.safetensors", "lm_head", None),
        ("pytorch_model.bin", "both", "lm_head"),
        ("model.safetensors", "embeddings", "coordinates"),
    ],
)
@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_outputs_are_those_of_the_published_forward(model_type, file, names, shard_by, tmp_path):
    stock, tensors = published(tmp_path, model_type, file, names, shard_by)
    model, info = load_published(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = published_logits(stock, tensors)[1]
    assert_close(model(input_ids=IDS, attention_mask=MASK).logits, expected, **TOLERANCE)
    labels = torch.where(MASK.bool(), IDS, -100)
    loss = model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
    assert_close(loss, torch.nn.functional.cross_entropy(expected[MASK.bool()], IDS[MASK.bool()]))


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_saved_again_it_is_a_folder_of_our_own_format(model_type, tmp_path):
    published(tmp_path / "theirs", model_type)
    model = load_published(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["source_model_type"], config["rank"]) == ("ofa-fast", model_type, RANK)
    assert config["architectures"] == [type(model).__name__] and "num_primitive" not in config
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(loaded) is type(model) and not any(info.values())
    assert_close(loaded(IDS, MASK).logits, model(IDS, MASK).logits, rtol=0, atol=0)
    dense = to_dense(model)
    assert dense.config.model_type == model_type and not hasattr(dense.config, "num_primitive")
    assert_close(dense(IDS, MASK).logits, model(IDS, MASK).logits, **TOLERANCE)


def test_other_auto_classes_and_dtypes(tmp_path):
    stock, tensors = published(tmp_path)
    hidden, _ = published_logits(stock, tensors)
    assert_close(load_published(tmp_path, AutoModel)(IDS, MASK)[0], hidden, **TOLERANCE)
    classifier, info = load_published(tmp_path, AutoModelForTokenClassification, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    assert_close(classifier.roberta(IDS, MASK)[0], hidden, **TOLERANCE)
    half = load_published(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_what_is_not_such_a_folder_is_refused(tmp_path):
    published(tmp_path / "wide", num_primitive=RANK + 1)
    with pytest.raises(ValueError, match=r"shape \[90, 6\], as config.json says, got \[\[90, 5\]\]"):
        load_published(tmp_path / "wide")
    published(tmp_path / "untied", state={HEAD[BASIS]: torch.zeros(WIDTH, RANK)})
    with pytest.raises(ValueError, match=r"down_project.weight differs"):
        load_published(tmp_path / "untied")
    source_model("roberta").save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="no num_primitive: AutoModelForMaskedLM opens"):
        load_published(tmp_path / "stock")
    published(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").unlink()
    with pytest.raises(OSError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_published(tmp_path / "empty")
    published(tmp_path / "halved", file="model.safetensors", shard_by="lm_head")
    (tmp_path / "halved" / "model-2-of-2.safetensors").unlink()
    with pytest.raises(OSError, match=r"model-2-of-2\.safetensors"):
        load_published(tmp_path / "halved")
