"""Fine-tuned tasks from a folder to a report: tiny models learn what can be learnt, alike in every run."""

from __future__ import annotations

import json

import pytest
import torch

from ofa_fast.evaluation import evaluate
from ofa_fast.evaluation.finetuning import Example, Recipe, finetune, predict
from ofa_fast.evaluation.loading import load

QUICK = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 16}


@pytest.fixture(params=["dense", "factorised"])
def folder(request, model, dense, tokenizer, tmp_path):
    (model if request.param == "factorised" else dense).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def topics(english, tmp_path):
    """Sorrow or joy. "upp" is in capitals, which the tokenizer ignores; all texts of "xyz" are the same."""

    def rows(verses, change=str):
        starts = [f"{('But', 'Blessed')[i % 2]} {verse.split()[1]}" for i, verse in enumerate(verses)]
        return ["text\tlabel", *(f"{change(s)}\t{('sorrow', 'joy')[i % 2]}" for i, s in enumerate(starts))]

    for language, change in (("eng", str), ("upp", str.upper), ("xyz", lambda start: "of")):
        write(tmp_path / "topics" / language / "test.tsv", rows(english[3::4], change))
    write(tmp_path / "topics" / "eng" / "train.tsv", rows(english[::2]))
    write(tmp_path / "topics" / "eng" / "dev.tsv", rows(english[1::4]))
    return tmp_path / "topics"


@pytest.fixture
def tags(english, tmp_path):
    """Capitalised words are names: a word's tag can be told from the word."""

    def rows(verses, change=str):
        for verse in verses:
            for i, word in enumerate(verse.replace(",", " ,").split()[:12], 1):
                upos, name = ("PROPN", "B-PER") if word[0].isupper() else ("NOUN", "O")
                yield i, change(word), upos, name
            yield None

    def conllu(verses, change=str):
        return ["" if r is None else f"{r[0]}\t{r[1]}\t_\t{r[2]}\t_\t_\t_\t_\t_\t_" for r in rows(verses, change)]

    def iob2(verses, change=str):
        return ["" if r is None else f"{r[0]}\t{r[1]}\t{r[3]}\t-\t-" for r in rows(verses, change)]

    for task, lines, suffix in (("pos", conllu, "conllu"), ("ner", iob2, "iob2")):
        for language, change in (("eng", str), ("upp", str.upper)):
            write(tmp_path / task / language / f"test.{suffix}", lines(english[140:170], change))
        write(tmp_path / task / "eng" / f"train.{suffix}", lines(english[:80]))
        write(tmp_path / task / "eng" / f"dev.{suffix}", lines(english[100:120]))
    return tmp_path


def test_classification_is_learnt_and_repeats(folder, topics, tmp_path):
    report = evaluate(folder, topics, "classification", seeds=(0, 1), out=tmp_path / "report", **QUICK)
    eng, upp, xyz = (report["languages"][code] for code in ("eng", "upp", "xyz"))
    assert eng["seeds"] == upp["seeds"] and eng["macro_f1"] == pytest.approx(eng["score"])
    assert eng["score"] > 0.75 and xyz["score"] <= 0.5
    assert eng["accuracy"] > eng["majority"]
    assert report["average"]["score"] == pytest.approx((upp["score"] + xyz["score"]) / 2)
    assert [run["train_items"] for run in report["fine_tuning"]] == [100, 100]
    for run in report["fine_tuning"]:
        assert run["dev"] == max(run["dev_scores"]) == run["dev_scores"][run["epoch"] - 1]
    again = evaluate(folder, topics, "classification", seeds=(1,), **QUICK)
    assert again["languages"]["upp"]["seeds"] == upp["seeds"][1:]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert not list(tmp_path.glob(".report*"))
    tex, page = ((tmp_path / f"report.{suffix}").read_text() for suffix in ("tex", "html"))
    assert r"macro\_f1" not in tex and r"\toprule" in tex and "eng (source)" in tex
    assert "<svg" in page and "src=" not in page


@pytest.mark.parametrize(("task", "metric"), [("pos", "accuracy"), ("ner", "f1")])
def test_tags_are_learnt(folder, tags, task, metric):
    report = evaluate(folder, tags, task, max_train=60, **QUICK)
    eng, upp = (report["languages"][code] for code in ("eng", "upp"))
    assert report["metric"] == metric
    assert eng["score"] == upp["score"] > 0.5
    assert (eng["items"], eng["empty"], eng["cut"]) == (30, 0, 0)
    assert report["fine_tuning"][0]["train_items"] == 60
    if task == "ner":
        assert eng["f1"] == pytest.approx(eng["score"], abs=1e-12)
    cut = evaluate(folder, tags, task, max_length=6, **QUICK | {"epochs": 1})
    assert cut["languages"]["eng"]["cut"] > 100
    assert cut["languages"]["eng"]["words"] == eng["words"]


@pytest.mark.parametrize("place", [".", "model", "topics"])
def test_an_interrupted_call_goes_on(folder, topics, tmp_path, monkeypatch, place):
    from ofa_fast.evaluation import classification

    call = {"seeds": (0, 1), "out": tmp_path / place / "report", **QUICK, "epochs": 1}
    tuned = []

    def until_the_second(model, train, recipe, seed, *rest):
        if tuned:
            raise KeyboardInterrupt
        tuned.append(seed)
        return finetune(model, train, recipe, seed, *rest)

    monkeypatch.setattr(classification, "finetune", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, topics, "classification", **call)
    assert not list((tmp_path / place).glob("report.*"))

    def only_the_second(model, train, recipe, seed, *rest):
        assert seed == 1
        return finetune(model, train, recipe, seed, *rest)

    monkeypatch.setattr(classification, "finetune", only_the_second)
    resumed = evaluate(folder, topics, "classification", **call)
    assert not list((tmp_path / place).glob(".*"))
    monkeypatch.setattr(classification, "finetune", finetune)
    whole = evaluate(folder, topics, "classification", **{**call, "out": None})
    for name in ("languages", "average", "fine_tuning"):
        assert resumed[name] == whole[name]


def test_seeds_of_other_texts_are_measured_again(folder, topics, tmp_path, monkeypatch):
    from ofa_fast.evaluation import classification

    call = {"seeds": (0, 1), "out": tmp_path / "report", **QUICK, "epochs": 1}
    tuned = []

    def until_the_second(model, train, recipe, seed, *rest):
        tuned.append(seed)
        if seed == 1:
            raise KeyboardInterrupt
        return finetune(model, train, recipe, seed, *rest)

    monkeypatch.setattr(classification, "finetune", until_the_second)
    for change in ("", "", "more\tjoy\n"):
        with open(topics / "xyz" / "test.tsv", "a", encoding="utf-8") as file:
            file.write(change)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, topics, "classification", **call)
    assert tuned == [0, 1, 1, 0, 1]


def test_a_frozen_table_stays_and_the_best_epoch_is_kept(folder):
    examples = [Example([2, 10 + i, 3], i % 2) for i in range(20)]
    recipe = Recipe(epochs=5, learning_rate=1e-2, batch_size=4, patience=2, freeze_table=True)
    network, _ = load(folder, "AutoModelForSequenceClassification", num_labels=2)
    table = {name: p.clone() for name, p in network.get_input_embeddings().named_parameters()}
    seen = []

    def dev_score():
        seen.append(network.classifier.weight.detach().clone())
        return [0.1, 0.9, 0.5, 0.9, 1.0][len(seen) - 1]

    notes = finetune(network, examples, recipe, 0, dev_score)
    assert (notes["epoch"], notes["dev_scores"]) == (2, [0.1, 0.9, 0.5, 0.9])
    assert torch.equal(network.classifier.weight, seen[1])
    for name, parameter in network.get_input_embeddings().named_parameters():
        assert torch.equal(parameter, table[name])


def test_predictions_do_not_depend_on_the_batch(folder):
    network, _ = load(folder, "AutoModelForTokenClassification", num_labels=5)
    inputs = [[2, *range(10, 10 + n), 3] for n in (1, 9, 4, 30)]
    one, many = (predict(network, inputs, batch_size=size) for size in (1, 4))
    assert [len(row) for row in one] == [len(ids) for ids in inputs]
    assert all((a == b).all() for a, b in zip(one, many, strict=True))


def test_bad_calls_are_named(folder, topics, monkeypatch):
    for call, message in (
        ({"task": "parsing"}, "task: expected one of retrieval, classification, ner, pos"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"layers": 3}, "layers: no option of classification"),
        ({"epochs": 0}, "epochs: expected a positive number"),
        ({"precision": "int4"}, "precision: expected one of float32, bfloat16"),
        ({"max_length": 1000}, "max_length: 1000 is over the 128 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(folder, topics, **{"task": "classification", **call})
    write(topics / "upp" / "test.tsv", ["text\tlabel", "a\tmaybe"])
    with pytest.raises(ValueError, match="upp has the label 'maybe', which no training text has"):
        evaluate(folder, topics, "classification")
    monkeypatch.setitem(__import__("sys").modules, "seqeval.metrics", None)
    with pytest.raises(ValueError, match=r"needs the package seqeval: pip install 'ofa-fast\[evaluate\]'"):
        evaluate(folder, topics, "ner")
