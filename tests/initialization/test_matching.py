"""Which source token each target token copies."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ofa_fast.initialization import match_vocabularies
from ofa_fast.initialization.matching import read_vocabulary, vocabulary_kind
from ofa_fast.initialization.tokenization import decoded, normalizer, tokens_by_id

NORMALIZERS = [normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Prepend("▁")]
DECODERS = [decoders.WordPiece(), decoders.Metaspace(), None]
FILLER = {"##": [f"##filler{i}" for i in range(120)], "▁": [f"▁filler{i}" for i in range(120)], "": []}


def tokenizer_of(tokens: list[str], filler: str = "", added=(), **special) -> PreTrainedTokenizerFast:
    """A tokenizer with these tokens at ids 0, 1, ..., then enough fillers for its kind to be known."""
    vocabulary = {token: i for i, token in enumerate([*tokens, *FILLER[filler]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    result = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    result.add_tokens(list(added))
    return result


def matched(source, target, **options) -> dict[str, str]:
    names = {index: token for token, index in source.get_vocab().items()}
    sources = match_vocabularies(source, target, **options)
    return {token: names[sources[index]] for token, index in target.get_vocab().items() if sources[index] >= 0}


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        (["<s>", "▁the", "▁a", "##b"], "metaspace"),
        (["[CLS]", "the", "##the", "##a", "▁"], "wordpiece"),
        (["Ġthe", "the", "Ġ"], "byte-level"),
        (["a", "b", None], "plain"),
        (["the</w>", "a</w>", "##a"], "word-end"),
        (["<pad>", *map(chr, range(256))], "bytes"),
    ],
)
def test_vocabulary_kind(tokens, kind):
    assert vocabulary_kind(tokens) == kind


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        (["▁the", "the", "▁New▁York", "<0x41>", "<0xE2>"], [" the", "the", " New York", b"A", b"\xe2"]),
        (["the", "##the", "##", "é"], [" the", "the", "", " é"]),
        (["Ġthe", "the", "Ã©", "â", "Ċ"], [" the", "the", "é", b"\xe2", "\n"]),
        (["the", "é"], [" the", " é"]),
        (["un", "é", "é</w>", "do</w>"], ["un", "é", " é", " do"]),
    ],
)
def test_standard_texts(tokens, texts):
    assert read_vocabulary(tokenizer_of(tokens)).texts == texts


def test_kinds_of_trained_tokenizers(tokenizers):
    kinds = {name: vocabulary_kind(list(tokenizer.get_vocab())) for name, tokenizer in tokenizers.items()}
    assert kinds == {
        "wordpiece": "wordpiece",
        "cased wordpiece": "wordpiece",
        "metaspace": "metaspace",
        "byte-level": "byte-level",
    }


def of_all_kinds(tokenizers) -> list[PreTrainedTokenizerFast]:
    odd = tokenizer_of(["[UNK]", "a b", "do n't", "x .", "Ġa"], added=["new", "Ġz"], clean_up_tokenization_spaces=True)
    gaps = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 2}, unk_token="a")))
    hidden = json.loads(odd.backend_tokenizer.to_str())
    hidden["added_tokens"][0] |= {"id": 1}
    hidden = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(hidden)))
    return [*tokenizers.values(), odd, gaps, hidden, *map(with_normalized_tokens, NORMALIZERS, DECODERS)]


def with_normalized_tokens(normalizer, decoder) -> PreTrainedTokenizerFast:
    made = tokenizer_of(["[UNK]", "a b"])
    made.backend_tokenizer.normalizer, made.backend_tokenizer.decoder = normalizer, decoder
    made.add_tokens(["Polish", "x ."])
    return made


def test_tokens_and_what_they_decode_to_are_those_of_the_tokenizer(tokenizers):
    for tokenizer in of_all_kinds(tokenizers):
        tokens, vocabulary = tokens_by_id(tokenizer), tokenizer.get_vocab()
        ids = sorted(set(vocabulary.values()))
        assert [index for index, token in enumerate(tokens) if token is not None] == ids
        assert all(vocabulary[tokens[index]] == index for index in ids)
        for tidy in (False, True):
            tokenizer.clean_up_tokenization_spaces = tidy
            assert decoded(tokenizer, ids, tokens) == [tokenizer.decode([index]) for index in ids]


def test_texts_without_spaces_are_not_cleaned_of_them(monkeypatch):
    tokenizer = tokenizer_of(["[UNK]", "a"], clean_up_tokenization_spaces=True)
    plain = PreTrainedTokenizerFast.batch_decode
    # So it is in transformers 5.0.
    monkeypatch.setattr(PreTrainedTokenizerFast, "batch_decode", lambda own, ids: plain(own, ids) if ids else [""])
    assert decoded(tokenizer, [0, 1], tokens_by_id(tokenizer)) == ["[UNK]", "a"]


@pytest.mark.parametrize(
    "steps",
    [
        [normalizers.BertNormalizer(lowercase=True)],
        [normalizers.BertNormalizer(lowercase=False)],
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")],
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()],
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")],
        [normalizers.Replace("ab", "c"), normalizers.Lowercase()],
        [normalizers.Replace(Regex("x y"), "z")],
    ],
)
def test_pieces_are_normalized_as_the_tokenizer_does_it(steps):
    tokenizer = tokenizer_of(["[UNK]"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    of_piece = normalizer(tokenizer)
    for text in (
        "Water",
        " Water",
        "",
        " ",
        "a  B",
        "x y",
        "ab ",
        " \t",
        "A\x7fb",
        "ﬁ",
        " Café",
        "A\u0301b",
        "水x",
        "▁x",
    ):
        body = tokenizer.backend_tokenizer.normalizer.normalize_str(text.removeprefix(" ")).replace("▁", " ").strip()
        assert of_piece(text) == (f" {body}" if body and text.startswith(" ") else body)


def test_every_token_matches_itself(tokenizers):
    for tokenizer in tokenizers.values():
        assert match_vocabularies(tokenizer, tokenizer).tolist() == list(range(len(tokenizer)))


def test_a_word_start_matches_across_kinds(tokenizers):
    pairs = matched(tokenizers["byte-level"], tokenizers["metaspace"])
    assert pairs["▁the"] == "Ġthe"
    pairs = matched(tokenizers["wordpiece"], tokenizers["byte-level"])
    assert pairs["ĠGod"] == "god"
    assert all(
        source.startswith("##") != target.startswith("Ġ")
        for target, source in pairs.items()
        if any(map(str.isalnum, source)) and target != "<|endoftext|>"
    )


def test_exact_case_comes_first_then_lower_case_then_lowest_id():
    source = tokenizer_of(["[UNK]", "APPLE", "apple", "Apple", "PEAR", "Pear"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", "▁Apple", "▁aPPle", "▁pear"], "▁", unk_token="<unk>")
    assert matched(source, target) == {"<unk>": "[UNK]", "▁Apple": "Apple", "▁aPPle": "apple", "▁pear": "PEAR"}
    for parity in (False, True):
        exact = matched(source, target, fuzzy=False, parity=parity)
        assert exact == {"▁Apple": "Apple"} | ({} if parity else {"<unk>": "[UNK]"})


def test_the_same_text_comes_before_what_reads_the_same_with_and_without_a_space():
    source = tokenizer_of(["[UNK]", ".", "##.", "!", "the"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", "▁.", ".", "▁!", "!", "the"], "▁", unk_token="<unk>")
    pairs = {"<unk>": "[UNK]", "▁.": ".", ".": "##.", "▁!": "!", "!": "!"}
    assert matched(source, target) == pairs  # a word's beginning is no word's end


def test_tokens_that_end_words_are_words_first_and_parts_second():
    target = tokenizer_of(["<unk>", "▁do", "do", "▁un", "un"], "▁", unk_token="<unk>")
    both = tokenizer_of(["<unk>", "do", "do</w>", "un"], unk_token="<unk>")
    pairs = {"<unk>": "<unk>", "▁do": "do</w>", "do": "do", "▁un": "un", "un": "un"}
    assert matched(both, target) == pairs


def test_a_text_is_matched_as_the_source_would_read_it():
    source = tokenizer_of(["[UNK]", "cafe", "fine"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", "▁Café", "▁ﬁne", "▁thé"], "▁", unk_token="<unk>")
    assert matched(source, target) == {"<unk>": "[UNK]"}
    source.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    assert matched(source, target) == {"<unk>": "[UNK]", "▁Café": "cafe", "▁ﬁne": "fine"}
    assert matched(source, target, fuzzy=False) == {"<unk>": "[UNK]"}


def test_compositions_of_a_letter_match_but_compatibility_forms_do_not():
    source = tokenizer_of(["[UNK]", "e\u0301", "2"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", "▁é", "▁²"], "▁", unk_token="<unk>")
    assert matched(source, target) == {"<unk>": "[UNK]", "▁é": "e\u0301"}


def test_an_empty_text_matches_nothing():
    source = tokenizer_of(["[UNK]", "##"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", ""], "▁", unk_token="<unk>")
    assert matched(source, target) == {"<unk>": "[UNK]"}


def test_published_case_match_takes_the_last_in_sorted_order():
    source = tokenizer_of(["[UNK]", "APPLE", "Apple", "PEAR"], "##", unk_token="[UNK]")
    target = tokenizer_of(["<unk>", "▁aPPle", "▁pear"], "▁", unk_token="<unk>")
    assert matched(source, target, parity=True) == {"▁aPPle": "Apple", "▁pear": "PEAR"}


def test_source_id_zero_is_lost_only_in_parity_and_only_in_another_case():
    source = tokenizer_of(["Water", "fire"], "##")
    target = tokenizer_of(["▁fire", "▁water"], "▁")
    assert matched(source, target) == {"▁water": "Water", "▁fire": "fire"}
    assert matched(source, target, parity=True) == {"▁fire": "fire"}
    exact = tokenizer_of(["▁fire", "▁Water"], "▁")
    assert matched(source, exact, parity=True) == {"▁Water": "Water", "▁fire": "fire"}


def test_tokens_with_one_standard_text_collapse_only_in_parity():
    # Both metaspace tokens read " a b".
    source = tokenizer_of(["x", "a b"], "##")
    target = tokenizer_of(["y", "▁a▁b", "▁a b"], "▁")
    assert matched(source, target) == {"▁a▁b": "a b", "▁a b": "a b"}
    assert matched(source, target, parity=True) == {"▁a b": "a b"}


def test_special_tokens_match_by_role():
    source = tokenizer_of(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"],
        "##",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    target = tokenizer_of(
        ["<s>", "<pad>", "</s>", "<unk>", "▁word", "[MASK]", "<mask>"],
        "▁",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    # The target's "[MASK]" is an ordinary token that begins no word: it reads "[MASK]", not as the source's mask.
    assert matched(source, target) == {
        "<s>": "[CLS]",
        "<pad>": "[PAD]",
        "</s>": "[SEP]",
        "<unk>": "[UNK]",
        "<mask>": "[MASK]",
        "▁word": "word",
    }


def test_one_special_token_in_several_roles(tokenizers):
    pairs = matched(tokenizers["metaspace"], tokenizers["byte-level"])
    assert pairs["<|endoftext|>"] == "<s>"
    pairs = matched(tokenizers["byte-level"], tokenizers["metaspace"])
    assert {pairs[token] for token in ("<s>", "</s>", "<unk>")} == {"<|endoftext|>"}
    assert "<mask>" not in pairs


def test_other_special_tokens_match_by_text_among_special_tokens():
    source = tokenizer_of(["[UNK]", "<turn>", "<tool>"], unk_token="[UNK]", additional_special_tokens=["<turn>"])
    target = tokenizer_of(
        ["<unk>", "<tool>", "<turn>"], unk_token="<unk>", additional_special_tokens=["<turn>", "<tool>"]
    )
    assert matched(source, target) == {"<unk>": "[UNK]", "<turn>": "<turn>"}


def test_byte_fallback_tokens(tokenizers):
    target = tokenizer_of(["<unk>", "<0x41>", "<0xE2>", "▁a"], "▁", unk_token="<unk>")
    pairs = matched(tokenizers["byte-level"], target)
    assert (pairs["<0x41>"], pairs["<0xE2>"]) == ("A", "â")
    with_both = tokenizer_of(["A", "<0x41>"], "▁")
    assert matched(with_both, target)["<0x41>"] == "<0x41>"
    assert matched(tokenizer_of(["<unk>", "<0x0A>", "▁a"], "▁"), tokenizers["byte-level"])["Ċ"] == "<0x0A>"


def test_added_tokens_are_read_as_they_are_written(tokenizers):
    source = tokenizer_of(["Ġthe", "a"], added=[AddedToken("é", normalized=False)])
    assert read_vocabulary(source).texts == [" the", "a", "é"]


def test_gaps_match_nothing():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "water": 4}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert match_vocabularies(tokenizer, tokenizer).tolist() == [0, -1, -1, -1, 4]


def test_an_empty_vocabulary_is_an_error(tokenizers):
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({})))
    with pytest.raises(ValueError, match="target_tokenizer has an empty vocabulary"):
        match_vocabularies(tokenizers["wordpiece"], empty)
