"""Word alignment with a trained tokenizer of every kind, on real text."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertGenerationTokenizer, BertTokenizerLegacy, ByT5Tokenizer, PreTrainedTokenizerFast

from ofa_fast.evaluation.words import CUT, EMPTY, WordTokenizer

BIBLE = Path(__file__).parents[2] / "examples" / "data" / "bible"
LANGUAGES = ("eng", "deu", "chr", "cop")
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def verses(count: int) -> list[str]:
    files = [(BIBLE / f"{language}.txt").read_text("utf-8").split("\n") for language in LANGUAGES]
    return [verse for file in files for verse in [verse for verse in file if verse][-count:]]


def sentences() -> list[list[str]]:
    return [verse.split() for verse in verses(16)]


def trained(model, pre_tokenizer, trainer) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    options = {"vocab_size": 600, "special_tokens": list(SPECIAL.values()), "show_progress": False}
    if trainer is trainers.UnigramTrainer:
        options["unk_token"] = SPECIAL["unk_token"]
    backend.train_from_iterator(verses(150), trainer(**options))
    names = SPECIAL["cls_token"], SPECIAL["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single="{} $A {}".format(*names), special_tokens=[(name, backend.token_to_id(name)) for name in names]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def byte_level(prefix: bool) -> PreTrainedTokenizerFast:
    return trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=prefix), trainers.BpeTrainer)


def metaspace(model, trainer, scheme: str) -> PreTrainedTokenizerFast:
    return trained(model, pre_tokenizers.Metaspace(prepend_scheme=scheme), trainer)


FAST = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a prefix space": lambda: byte_level(True),
    "sentencepiece unigram": lambda: metaspace(models.Unigram(), trainers.UnigramTrainer, "always"),
    "sentencepiece bpe": lambda: metaspace(models.BPE(), trainers.BpeTrainer, "always"),
    "sentencepiece without a first space": lambda: metaspace(models.BPE(), trainers.BpeTrainer, "never"),
    "wordpiece": lambda: trained(
        models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), trainers.WordPieceTrainer
    ),
    "words": lambda: trained(
        models.WordLevel(unk_token="[UNK]"), pre_tokenizers.WhitespaceSplit(), trainers.WordLevelTrainer
    ),
}


@pytest.mark.parametrize("kind", FAST)
def test_words_begin_where_the_offsets_say(kind):
    tokenizer = FAST[kind]()
    words = sentences()
    bare = 0
    for sentence, found in zip(words, WordTokenizer(tokenizer, 1000)(words), strict=True):
        text = " ".join(sentence)
        whole = tokenizer(text, return_offsets_mapping=True)
        assert found.ids == whole.input_ids
        begin = 0
        for word, place in zip(sentence, found.first, strict=True):
            inside = [
                i
                for i, (low, high) in enumerate(whole.offset_mapping)
                if low < high and low < begin + len(word) and high > begin and text[low:high].strip()
            ]
            pieces = tokenizer.convert_ids_to_tokens([whole.input_ids[i] for i in inside])
            bare += pieces[0] == "▁"
            inside = [i for i, piece in zip(inside, pieces, strict=True) if piece not in ("▁", "Ġ")]
            assert place == inside[0], (word, pieces)
            begin += len(word) + 1
    assert "unigram" not in kind or bare > 10, "this text should have words with a bare ▁"


def test_a_slow_tokenizer_agrees_with_its_fast_twin(tmp_path):
    fast = FAST["wordpiece"]()
    tokens = sorted(fast.get_vocab(), key=fast.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"), do_lower_case=False, strip_accents=False)
    words = [sentence for sentence in sentences() if all(word.isascii() for word in sentence)]
    assert len(words) > 10
    assert WordTokenizer(slow, 1000)(words) == WordTokenizer(fast, 1000)(words)


def test_a_slow_sentencepiece_tokenizer(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(verses(150)), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spm"), vocab_size=600, pad_id=3, minloglevel=2
    )
    slow = BertGenerationTokenizer(str(tmp_path / "spm.model"))
    words = sentences()
    bare = 0
    for sentence, found in zip(words, WordTokenizer(slow, 1000)(words), strict=True):
        assert found.ids == slow(" ".join(sentence)).input_ids
        pieces = slow.convert_ids_to_tokens(found.ids)
        for word, place in zip(sentence, found.first, strict=True):
            piece = pieces[place]
            bare += pieces[place - 1] == "▁"
            assert piece == "<unk>" or word.startswith(piece.removeprefix("▁")), (word, piece)
            assert piece.startswith("▁") or pieces[place - 1] == "▁"
    assert bare > 100


def test_bytes():
    """ByT5 has neither words nor a fast twin: a word begins behind the space's byte."""
    (found,) = WordTokenizer(ByT5Tokenizer(), 100)([["In", "ᏗᏓ", "x"]])
    assert found.ids == ByT5Tokenizer()("In ᏗᏓ x").input_ids
    assert found.first == [0, 3, 10]


def test_words_that_are_nothing_or_cut_are_told_apart(tokenizer):
    tokenize = WordTokenizer(tokenizer, 7)
    (found,) = tokenize([["\u3000", "the", "\u3000", "God", "beginning" * 9, "and", "\u3000"]])
    assert len(found.ids) <= 7
    assert [place for place in found.first if place >= 0] == sorted(place for place in found.first if place >= 0)
    assert found.first[0] == found.first[2] == found.first[6] == EMPTY
    assert found.first[4] == found.first[5] == CUT
    assert found.ids[found.first[1]] == tokenizer.convert_tokens_to_ids("the")
    assert tokenize([[]])[0].ids == tokenizer("").input_ids
    with pytest.raises(ValueError, match="max_length: 2 leaves no room"):
        WordTokenizer(tokenizer, 2)
