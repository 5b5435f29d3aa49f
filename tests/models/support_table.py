"""The table of supported architectures in docs/models.md: what it says is what these checks found.

``python tests/models/support_table.py MINILM E5`` writes it anew, given the folders of the two pretrained models.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import torch
from tiny_models import LANGUAGE_MODEL, dense, inputs, source_model, table, train_tokenizer
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from ofa_fast import FactorizedEmbedding, FactorizedHead, build_model, to_dense

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by tests/models/support_table.py: begin -->\n", "<!-- end -->"
ARCHITECTURES = {
    "BERT": ("bert", {}),
    "RoBERTa": ("roberta", {}),
    "XLM-R": ("xlm-roberta", {}),
    "DistilBERT": ("distilbert", {}),
    "ModernBERT": ("modernbert", {}),
    "DeBERTa-v2": ("deberta-v2", {}),
    "ELECTRA": ("electra", {}),
    "GPT-2": ("gpt2", {}),
    "Llama, tied": ("llama", {}),
    "Llama, untied": ("llama", {"tie_word_embeddings": False}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Gemma": ("gemma", {}),
    "Gemma 2, capped logits": ("gemma2", {"final_logit_softcapping": 30.0}),
    "Gemma 3": ("gemma3_text", {}),
    "T5": ("t5", {}),
    "BART": ("bart", {}),
    "mBART": ("mbart", {}),
}
PRETRAINED = ("all-MiniLM-L6-v2, pretrained", "multilingual-e5-small, pretrained")
TEXTS = ["In the beginning God created the heavens and the earth.", "And the light was good."]


class Case:
    """A factorised model of rank D, and the stock model of the same function."""

    def __init__(self, source, tokenizer, result, head=None) -> None:
        self.source, self.tokenizer, self.result, self.head = source, tokenizer, result, head
        self.auto = LANGUAGE_MODEL[source.config.model_type]
        self.batch = inputs(tokenizer, TEXTS)
        self.labels = torch.where(self.batch["attention_mask"].bool(), self.batch["input_ids"], -100)

    @cached_property
    def model(self):
        return build_model(self.source, self.result, self.tokenizer, head=self.head)

    @cached_property
    def stock(self):
        head = None if self.head is None else dense(self.head)
        return build_model(self.source, dense(self.result), self.tokenizer, head=head)

    def logits(self, model) -> torch.Tensor:
        decoded = {"decoder_input_ids": self.batch["input_ids"]} if model.config.is_encoder_decoder else {}
        return model(**self.batch, **decoded).logits


def tiny(name: str, tokenizer) -> Case:
    """An architecture with random weights and a random table."""
    model_type, changes = ARCHITECTURES[name]
    source = source_model(model_type, **changes)
    output, width = source.get_output_embeddings(), source.get_input_embeddings().embedding_dim
    head = None if source.config.tie_word_embeddings else table(len(tokenizer), width, width)
    return Case(source, tokenizer, table(len(tokenizer), width, width, bias=output.bias is not None), head)


def real(folder) -> Case:
    """A pretrained encoder with its own tokenizer and its own table, rotated so that the basis is dense."""
    source = AutoModelForMaskedLM.from_pretrained(folder).eval()
    weight = source.get_input_embeddings().weight.detach()
    basis = torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1])).Q
    bias = torch.randn(len(weight))  # of a head that the folder lacks
    result = SimpleNamespace(coordinates=weight @ basis.T, basis=basis, bias=bias)
    return Case(source, AutoTokenizer.from_pretrained(folder), result)


def build(case):
    assert isinstance(case.model.get_input_embeddings(), FactorizedEmbedding)
    assert isinstance(case.model.get_output_embeddings(), FactorizedHead)


def save(case):
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        assert (Path(folder) / "model.safetensors").exists()


def load(case):
    with tempfile.TemporaryDirectory() as folder:
        case.model.save_pretrained(folder)
        loaded, info = case.auto.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert_close(case.logits(loaded), case.logits(case.model), rtol=0, atol=0)


def assert_equal_to_rounding(logits, expected):
    assert_close(logits, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


def outputs(case):
    assert_equal_to_rounding(case.logits(case.model), case.logits(case.stock))


def loss(case):
    output = case.model(**case.batch, labels=case.labels)
    assert_close(output.loss, case.stock(**case.batch, labels=case.labels).loss, rtol=1e-5, atol=1e-5)
    return None if output.logits is None else "equal, but through logits: the model caps what its head returns"


def gradients(case):
    for model in (case.model, case.stock):
        model.zero_grad()
        model(**case.batch, labels=case.labels).loss.backward()
    for ours, theirs in (
        (case.model.get_input_embeddings(), case.stock.get_input_embeddings()),
        (case.model.get_output_embeddings(), case.stock.get_output_embeddings()),
    ):
        grad = theirs.weight.grad
        assert_close(ours.coordinates.grad, grad @ ours.basis.T, rtol=1e-4, atol=1e-5)
        assert_close(ours.basis.grad, ours.coordinates.T @ grad, rtol=1e-4, atol=1e-4)


def use(case):
    """Fills a mask or generates, as the stock model does."""
    if case.auto is AutoModelForMaskedLM:
        text = f"In the {case.tokenizer.mask_token} ."
        filled = [
            pipeline("fill-mask", model=model, tokenizer=case.tokenizer, device="cpu")(text, top_k=3)
            for model in (case.model, case.stock)
        ]
        assert [f["token"] for f in filled[0]] == [f["token"] for f in filled[1]]
    else:
        prompt = {"inputs": case.batch["input_ids"][:1, :4], "max_new_tokens": 6, "do_sample": False}
        assert torch.equal(case.model.generate(**prompt), case.stock.generate(**prompt))


def export(case):
    model = to_dense(case.model)
    assert type(model) is type(case.source)
    assert_equal_to_rounding(case.logits(model), case.logits(case.model))


CHECKS = {
    "build": build,
    "save": save,
    "load": load,
    "outputs equal dense": outputs,
    "loss equals stock": loss,
    "gradients": gradients,
    "fill-mask or generate": use,
    "to_dense": export,
}


def row(name: str, make: Callable[[], Case]) -> tuple[str, list[str]]:
    """The table's line of a case, and a remark for each cell that is not a plain yes."""
    torch.manual_seed(0)
    cells, remarks, case = [], [], make()
    for title, check in CHECKS.items():
        try:
            remark, cell = check(case), "yes"
        except Exception as error:  # whatever fails is what the table must say
            remark, cell = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}", "no"
        cells.append(cell if remark is None else f"{cell}*")
        if remark is not None:
            remarks.append(f"- {name}, {title}: {remark}.")
    return f"| {name} | {' | '.join(cells)} |", remarks


def render(tokenizer, folders: dict[str, str]) -> str:
    rows = [row(name, partial(tiny, name, tokenizer)) for name in ARCHITECTURES]
    rows += [row(name, partial(real, folders[name])) for name in PRETRAINED]
    remarks = [remark for _, remarks in rows for remark in remarks]
    head = [f"| | {' | '.join(CHECKS)} |", "|" + "---|" * (len(CHECKS) + 1)]
    return "\n".join([*head, *(line for line, _ in rows), *([""] if remarks else []), *remarks]) + "\n"


def committed() -> str:
    return re.search(re.escape(BEGIN) + "(.*)" + re.escape(END), DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    made = render(train_tokenizer("bert"), dict(zip(PRETRAINED, sys.argv[1:], strict=True)))
    DOCUMENT.write_text(text.replace(BEGIN + committed() + END, BEGIN + made + END), encoding="utf-8")
