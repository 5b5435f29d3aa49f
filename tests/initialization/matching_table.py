"""The table of vocabulary matching in docs/initialization.md, beside what each token stands for in running text.

``python tests/initialization/matching_table.py`` writes it anew.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from ofa_fast.initialization import match_vocabularies

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "initialization.md"
BEGIN, END = "<!-- made by tests/initialization/matching_table.py: begin -->\n", "<!-- end -->"
LANGUAGES = ("eng", "deu", "spa", "swh", "chr", "cop")
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
ANCHORS = ("x", "ж", "7")  # behind a digit, as behind punctuation, a new word may begin: it is decoded only
SIZE = 1500


@cache
def lines() -> list[str]:
    """Verses in six languages, and punctuation, accents and a newline that they lack."""
    verses = [(ROOT / f"examples/data/bible/{code}.txt").read_text("utf-8").split("\n")[:300] for code in LANGUAGES]
    more = ["— ¿Qué? ¡No! «…» 100% (x-y) [z]; a/b.", "Größe straße café naïve ﬁne ½ Ⅳ", "水 火 山 川 water水"] * 40
    return [line for of_language in verses for line in of_language] + more


def fast(tokenizer: Tokenizer, trainer, special: dict[str, str], text=None) -> PreTrainedTokenizerFast:
    if trainer is not None:
        tokenizer.train_from_iterator(lines() if text is None else text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def bpe(**options) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=SIZE, show_progress=False, **options)


def gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = {"bos_token": end, "eos_token": end, "unk_token": end}
    return fast(tokenizer, bpe(special_tokens=[end], initial_alphabet=alphabet), special)


def llama3():
    """A pattern of its own before the bytes; added tokens, special and not."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = Regex(r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    made = fast(tokenizer, bpe(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), {})
    made.add_special_tokens({"bos_token": begin, "eos_token": end, "additional_special_tokens": ["<|user|>"]})
    made.add_tokens(["covid", "Größenwahn"])
    return made


def unigram(scheme: str):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = SPECIAL | {"mask_token": "<mask>"}
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        n_sub_iterations=1,
        shrinking_factor=0.3,
        max_piece_length=10,
        show_progress=False,
    )
    return fast(tokenizer, trainer, special)


def llama2():
    """SentencePiece BPE as it is converted: spaces become marks in the normalizer, and bytes are the last resort."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Words alone, so that no token crosses a space; the last of the alphabet is left to the bytes.
    words = [word for line in lines() for word in line.split()]
    made = fast(tokenizer, bpe(special_tokens=special, limit_alphabet=150), SPECIAL, words)
    backend = Tokenizer.from_str(re.sub(r'\{"id":\d+,"content":"<0x..>"[^}]*\},?', "", made.backend_tokenizer.to_str()))
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **SPECIAL)


def wordpiece(lowercase: bool):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=list(BERT.values()), show_progress=False)
    made = fast(tokenizer, trainer, BERT)
    made.add_tokens(["covid"])
    return made


def words():
    """Whole words, with gaps between their ids."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        lines(), trainers.WordLevelTrainer(vocab_size=SIZE, special_tokens=["<unk>", "<pad>"], show_progress=False)
    )
    ids = {token: 3 * index for token, index in tokenizer.get_vocab().items()}
    tokenizer.model = models.WordLevel(ids, unk_token="<unk>")
    return fast(tokenizer, None, {"unk_token": "<unk>", "pad_token": "<pad>"})


def clip():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.BPEDecoder(suffix="</w>"), decoders.ByteLevel()])
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = bpe(special_tokens=[end], initial_alphabet=alphabet, end_of_word_suffix="</w>")
    return fast(tokenizer, trainer, {"bos_token": end, "eos_token": end, "unk_token": end})


KINDS = {
    "byte-level (GPT-2)": gpt2,
    "byte-level (Llama 3)": llama3,
    "unigram (XLM-R)": lambda: unigram("always"),
    "byte fallback (Llama 2)": llama2,
    "WordPiece, cased": lambda: wordpiece(False),
    "WordPiece, uncased": lambda: wordpiece(True),
    "unigram, prepend first": lambda: unigram("first"),
    "unigram, prepend never": lambda: unigram("never"),
    "whole words": words,
    "word end (CLIP)": clip,
    "bytes (ByT5, Python)": lambda: ByT5Tokenizer(),
}


@cache
def tokenizer_of(kind: str):
    return KINDS[kind]()


@cache
def byte_of() -> dict[str, int]:
    """The byte behind each character of the byte-level alphabet, as the library itself writes bytes."""
    write = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    known = {}
    for code in (*range(0x800), *range(0x800, 0x110000, 61)):
        if not 0xD800 <= code < 0xE000:
            data = chr(code).encode()
            (written, _), *_ = write(chr(code))
            known |= dict(zip(written, data, strict=True))
    # Bytes that no UTF-8 holds are Latin-1 letters, which the alphabet leaves as they are.
    return {chr(byte): byte for byte in {*range(256)} - {*known.values()}} | known


def ids_of(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


@cache
def readings(kind: str) -> dict[int, set[bytes]]:
    """The bytes that each token stands for, with a space in front where a word begins there: found in context.

    Decoded behind another token; and what a text after a space or a letter needs to be encoded as this token alone.
    """
    tokenizer = tokenizer_of(kind)
    special = set(tokenizer.all_special_ids)
    tokens = {index: token for token, index in tokenizer.get_vocab().items() if index not in special}
    added = set(tokenizer.added_tokens_decoder)
    found: dict[int, set[bytes]] = {index: set() for index in tokens}
    before = [(anchor, ids) for anchor, ids in zip(ANCHORS, ids_of(tokenizer, list(ANCHORS)), strict=True)]
    prefixes = {tuple(ids): tokenizer.decode(ids) for _, ids in before}
    for ids, prefix in prefixes.items():
        decoded = tokenizer.batch_decode([[*ids, index] for index in tokens])
        for index, text in zip(tokens, decoded, strict=True):
            if text.startswith(prefix) and "\ufffd" not in text:
                found[index].add(text[len(prefix) :].encode())
    for index, token in tokens.items():
        if kind.startswith("byte-level") and index not in added:
            found[index].add(bytes(map(byte_of().__getitem__, token)))
        elif kind.startswith("word end") and not found[index]:
            found[index] = {bytes(map(byte_of().__getitem__, token.removesuffix("</w>")))}
        elif kind.startswith("byte fallback") and token.startswith("<0x"):
            found[index] = {bytes.fromhex(token[3:5])}
        elif kind.startswith("bytes"):
            found[index] = {bytes([index - 3])}
    bare = {
        index: text.strip()
        for index, options in found.items()
        for text in [max((o.decode("utf-8", "replace") for o in options), default="", key=len)]
        if text.strip() and "\ufffd" not in text
    } | {index: tokens[index] for index in added if index in tokens and not kind.startswith("bytes")}
    for anchor, ids in before[:2]:
        for space in ("", " "):
            encoded = ids_of(tokenizer, [f"{anchor}{space}{text}" for text in bare.values()])
            for (index, text), got in zip(bare.items(), encoded, strict=True):
                if got == [*ids, index]:
                    found[index].add(f"{space}{text}".encode())
    return {index: {option for option in options if option} for index, options in found.items()}


def loosely(kind: str, options: set[bytes]) -> set[str]:
    """The readings without case, composition and, where the tokenizer strips them, accents."""
    out = set()
    for option in options:
        text = unicodedata.normalize("NFKD", option.decode("utf-8", "replace").lower()).lower()
        out.add(text)
        if "uncased" in kind:
            out.add("".join(c for c in text if unicodedata.category(c) != "Mn"))
    return out


@cache
def compare(source: str, target: str) -> dict[str, int | list]:
    """How many tokens have a source token of the same reading, how many are matched, and what is wrong."""
    by_reading: dict[bytes, set[int]] = {}
    for index, options in readings(source).items():
        for option in options:
            by_reading.setdefault(option, set()).add(index)
    source_tokenizer, target_tokenizer = tokenizer_of(source), tokenizer_of(target)
    source_special, target_special = set(source_tokenizer.all_special_ids), set(target_tokenizer.all_special_ids)
    found = match_vocabularies(source_tokenizer, target_tokenizer)
    name = source_tokenizer.convert_ids_to_tokens
    missed, wrong, exact, more = [], [], 0, 0
    for index, options in readings(target).items():
        same = set().union(*(by_reading.get(option, set()) for option in options))
        got = int(found[index])
        pair = (target_tokenizer.convert_ids_to_tokens(index), name(got) if got >= 0 else None)
        exact += bool(same)
        more += not same and got >= 0
        if same and got not in same:
            missed.append((*pair, [name(i) for i in sorted(same)]))
        elif not same and got >= 0:
            theirs = readings(source)[got] if got not in source_special else set()
            if not any(
                a == b or (strip_marks(a) == b and "uncased" in source)
                for a in loosely(target, options)
                for b in loosely(source, theirs)
            ):
                wrong.append(pair)
    wrong += [
        (target_tokenizer.convert_ids_to_tokens(index), name(int(found[index])))
        for index in target_special
        if found[index] >= 0 and int(found[index]) not in source_special
    ]
    return {"exact": exact, "more": more, "missed": missed, "wrong": wrong, "matched": int(np.sum(found >= 0))}


def strip_marks(text: str) -> str:
    return "".join(c for c in text if unicodedata.category(c) != "Mn")


def row(source: str) -> str:
    pairs = [compare(source, target) for target in KINDS]
    cells = [f"{pair['exact']:,} + {pair['more']:,}" for pair in pairs]
    return f"| {source}: {len(tokenizer_of(source).get_vocab()):,} | {' | '.join(cells)} |"


def table() -> str:
    head = [f"| source: tokens | {' | '.join(KINDS)} |", "|" + "---|" * (1 + len(KINDS))]
    return "\n".join([*head, *map(row, KINDS)]) + "\n"


def committed() -> str:
    text = DOCUMENT.read_text("utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END, text.index(BEGIN))]


if __name__ == "__main__":
    before, _, after = DOCUMENT.read_text("utf-8").partition(BEGIN + committed())
    DOCUMENT.write_text(before + BEGIN + table() + after, "utf-8")
