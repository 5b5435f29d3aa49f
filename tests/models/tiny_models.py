"""Tiny models of each family, tokenizers trained on real text, and tables to put into them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from ofa_fast import build_model

TEXT = Path(__file__).parents[2] / "examples" / "data" / "bible"
WIDTH = 16
BATCH = {"input_ids": torch.tensor([[5, 9, 31, 7, 3], [8, 6, 4, 2, 3]])}  # BART's classifiers read the last [SEP], 3
LABELS = torch.where(BATCH["input_ids"] > 4, BATCH["input_ids"], -100)
TOLERANCE = {"rtol": 0, "atol": 1e-5}

_BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
ENCODERS = {
    "bert": _BERT | {"pad_token_id": 0},
    "roberta": _BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "xlm-roberta": _BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}
_GEMMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8}
_BART = {f"{side}_{size}": 2 for side in ("encoder", "decoder") for size in ("layers", "attention_heads")} | {
    "d_model": WIDTH,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "scale_embedding": True,
}
OTHERS = {
    "albert": _BERT | {"embedding_size": 8, "pad_token_id": 0},
    "deberta-v2": _BERT | {"pad_token_id": 0},
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40},
    "electra": _BERT | {"embedding_size": 8, "pad_token_id": 0},
    "modernbert": _BERT | dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id"), 0),
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 0},
    "llama": _BERT | {"tie_word_embeddings": True},
    "qwen2": _BERT | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": _GEMMA | {"tie_word_embeddings": True},
    "gemma": _GEMMA,
    "gemma2": _GEMMA | {"final_logit_softcapping": None},
    "gemma3_text": _GEMMA,
    "bart": _BART,
    "mbart": _BART,
    "t5": {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
}
LANGUAGE_MODEL = dict.fromkeys([*ENCODERS, *OTHERS], AutoModelForMaskedLM) | {
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "granite": AutoModelForCausalLM,
    "qwen2": AutoModelForCausalLM,
    "qwen3": AutoModelForCausalLM,
    "gemma": AutoModelForCausalLM,
    "gemma2": AutoModelForCausalLM,
    "gemma3_text": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "bart": AutoModelForSeq2SeqLM,
    "mbart": AutoModelForSeq2SeqLM,
}


def source_model(model_type: str, auto=None, rows: int = 300, **changes):
    """A randomly initialised stock model, dropout off, whose biases and special rows are not zero either."""
    sizes = {**ENCODERS, **OTHERS, "granite": OTHERS["llama"] | {"logits_scaling": 3.0}}[model_type]
    config = AutoConfig.for_model(model_type, vocab_size=rows, **(sizes | changes))
    model = (auto or LANGUAGE_MODEL[model_type]).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def table(rows: int, rank: int, width: int = WIDTH, bias: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        coordinates=torch.randn(rows, rank) / rank**0.5,
        basis=torch.randn(rank, width) / 2,
        bias=torch.randn(rows) if bias else None,
    )


def dense(result) -> SimpleNamespace:
    return SimpleNamespace(coordinates=result.coordinates @ result.basis, basis=None, bias=result.bias)


def built(model_type: str, tokenizers, auto=None, rank: int = 5, **changes):
    """A factorised model of 264 rows, more than its tokenizer has tokens."""
    source = source_model(model_type, auto, **changes)
    width, bias = source.get_input_embeddings().embedding_dim, getattr(source.get_output_embeddings(), "bias", None)
    head = None if source.config.tie_word_embeddings else table(264, rank, width)
    result = table(264, rank, width, bias=bias is not None)
    return build_model(source, result, tokenizers["bert"], head=head).eval()


def outputs(model, batch) -> torch.Tensor:
    """The output tensor of any of the model's kinds; encoder-decoders decode their own input."""
    if model.config.is_encoder_decoder:
        batch = batch | {"decoder_input_ids": batch["input_ids"]}
    return model(**batch)[0]


def train_tokenizer(kind: str, size: int = 260) -> PreTrainedTokenizerFast:
    """A WordPiece ("bert": [PAD] is 0) or BPE ("roberta": <pad> is 1) tokenizer trained on a few verses."""
    if kind == "bert":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        tokenizer, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer
        first, last = "cls", "sep"
    else:
        names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
        tokenizer, trainer = Tokenizer(models.BPE(unk_token="<unk>")), trainers.BpeTrainer
        first, last = "bos", "eos"
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    verses = (TEXT / "eng.txt").read_text(encoding="utf-8").splitlines()[:200]
    tokenizer.train_from_iterator(
        verses, trainer(vocab_size=size, special_tokens=list(names.values()), limit_alphabet=60, show_progress=False)
    )
    ids = {role: tokenizer.token_to_id(token) for role, token in names.items()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[first]} $A {names[last]}",
        special_tokens=[(names[first], ids[first]), (names[last], ids[last])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=38, **{f"{role}_token": token for role, token in names.items()}
    )


def inputs(tokenizer, texts, masked: float = 0.0) -> dict[str, torch.Tensor]:
    """A padded batch; with ``masked``, that share of its real tokens carries a label."""
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True, truncation=True))
    batch.pop("token_type_ids", None)
    if masked:
        chosen = (torch.rand(batch["input_ids"].shape) < masked) & batch["attention_mask"].bool()
        batch["labels"] = torch.where(chosen, batch["input_ids"], -100)
    return batch
