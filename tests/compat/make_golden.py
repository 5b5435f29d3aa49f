"""What the published tools give on small real inputs: the files in tests/compat/golden.

``python tests/compat/make_golden.py OFA`` writes them anew, in an environment with wechsel 0.0.4, deepfocus 1.0.1 and
gensim, where OFA is a folder with the published ``ofa/utils.py``. The tests need none of these.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"
VERSES = Path(__file__).parents[2] / "examples" / "data" / "bible"
PAIRS = (
    "god gott|lord herr|earth erde|heaven himmel|water wasser|man mann|day tag|night nacht|light licht|son sohn|"
    "father vater|mother mutter|brother bruder|king könig|land land|word wort|hand hand|house haus|people volk|"
    "men männer|bread brot|fire feuer|blood blut|and und|or oder|not nicht|said sprach|name namen|sheep schafe"
)
DIM = 16
BUCKETS = 1000


def lines(*codes: str, count: int = 600) -> list[str]:
    return [line for code in codes for line in (VERSES / f"{code}.txt").read_text("utf-8").split("\n")[:count] if line]


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines("eng"), trainer)
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(roles, special, strict=True)))


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<s>", "[MASK]"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines("deu"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<s>", mask_token="[MASK]")


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=["<unk>", "[SEP]"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(lines("deu", "eng"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", sep_token="[SEP]")


def train_models(targets: dict[str, PreTrainedTokenizerFast]) -> None:
    """fastText models of words and, for FOCUS, of the targets' tokens; gensim's, which a seed brings back."""
    for code in ("eng", "deu"):
        save_model([re.findall(r"\w+", line.lower()) for line in lines(code)], GOLDEN / f"{code}.bin", sg=1)
    for name, tokenizer in targets.items():
        save_model([tokenizer.tokenize(line) for line in lines("deu")], GOLDEN / f"{name}.tokens.bin", sg=0)


def save_model(text: list[list[str]], path: Path, sg: int) -> None:
    from gensim.models.fasttext import FastText, save_facebook_model

    options = {"vector_size": DIM // 2, "bucket": BUCKETS, "min_count": 4, "epochs": 10, "workers": 1, "seed": 1}
    save_facebook_model(FastText(text, sg=sg, **options), str(path))


def source_matrix(size: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((size, DIM), dtype=np.float32)


def wechsel_results(source, targets, out: dict) -> None:
    from wechsel import WECHSEL, load_embeddings

    models = [load_embeddings(str(GOLDEN / f"{code}.bin")) for code in ("eng", "deu")]
    aligned = WECHSEL(*models, bilingual_dictionary=str(GOLDEN / "dictionary.txt"))
    plain = WECHSEL(*models, align_strategy=None)
    out["wechsel/align"] = aligned.source_transform(np.eye(DIM // 2))
    for name, target in targets.items():
        for kind, chosen, options in (
            ("subword", aligned, {}),
            ("words", aligned, {"use_subword_info": False}),
            ("plain", plain, {"use_subword_info": False, "neighbors": 4, "temperature": 1, "max_n_word_vectors": 200}),
        ):
            table, info = chosen.apply(source, target, source_matrix(len(source)), **options)
            key = f"wechsel/{name}/{kind}"
            out[f"{key}/table"] = table
            out[f"{key}/weights"] = np.stack([weights for _, weights, _ in info.sources.values()])
            out[f"{key}/cosines"] = np.stack([cosines for _, _, cosines in info.sources.values()])
            out[f"{key}/tokens"] = json.dumps([tokens for tokens, _, _ in info.sources.values()])
            out[f"{key}/info"] = json.dumps(
                [list(info.sources), info.not_found, info.source_subword_sources, info.target_subword_sources]
            )


def focus_results(source, targets, out: dict) -> None:
    import torch
    from deepfocus import FOCUS

    table = torch.from_numpy(source_matrix(len(source)))
    for name, target in targets.items():
        tokens = {"fasttext_model_path": str(GOLDEN / f"{name}.tokens.bin")}
        other = next(tokenizer for key, tokenizer in targets.items() if key != name)
        words = {"auxiliary_embedding_mode": "fasttext-wordlevel", "language_identifier": str(GOLDEN / "deu.bin")}
        for kind, options in (
            ("default", tokens),
            ("symbols", tokens | {"exact_match_all": False, "match_symbols": True, "fuzzy_match_all": True}),
            ("fuzzy", tokens | {"fuzzy_match_all": True, "seed": 7}),
            ("words", words),
            ("extended", tokens | {"extend_tokenizer": other}),
        ):
            got = FOCUS(target, source, table, verbosity="silent", **options)
            out[f"focus/{name}/{kind}"] = got.numpy()


def ofa_results(source, targets, out: dict, published: str) -> None:
    import fasttext
    from gensim.models import KeyedVectors

    sys.path.insert(0, str(Path(published)))
    import utils

    keys, rows = [], []
    for code in ("eng", "deu"):
        model = fasttext.load_model(str(GOLDEN / f"{code}.bin"))
        for number, word in enumerate(model.get_words()[1:400]):
            marks = ("", "$")[number % 3 > 0], ("", "$")[number % 2]
            keys.append(
                f"{marks[0]}{word}{marks[1]}"
                if code == "eng" and number % 5 == 0
                else f"{code}:{marks[0]}{word}{marks[1]}"
            )
            rows.append(model.get_word_vector(word))
    order = list(dict.fromkeys(keys))
    vectors = KeyedVectors(DIM // 2)
    vectors.add_vectors(order, np.stack([rows[keys.index(key)] for key in order]))
    out["ofa/keys"], out["ofa/vectors"] = json.dumps(order), vectors.vectors
    words = utils.WordEmbedding(vectors)
    made = {}
    for name, tokenizer in {"source": source, **targets}.items():
        matrix, sources, missing = utils.get_subword_embeddings_in_word_embedding_space(
            tokenizer, words, languages_considered={"deu", "eng"} if name == "source" else None,
            return_not_covered_set=True,
        )  # fmt: skip
        out[f"ofa/{name}/vectors"] = made[name] = matrix
        out[f"ofa/{name}/sources"] = json.dumps([sources, sorted(missing)])
    matrix, sources = utils.get_subword_embeddings_in_word_embedding_space(
        source, words, multilingual=False, max_n_word_vectors=150
    )
    out["ofa/words/vectors"], out["ofa/words/sources"] = matrix, json.dumps(sources)
    primitive, coordinates = utils.perform_factorize(source_matrix(len(source)), keep_dim=6)
    out["ofa/product"] = coordinates @ primitive
    for name, target in targets.items():
        for fuzzy, spaces in ((True, False), (False, False), (True, True)):
            found = utils.get_overlapping_tokens(target, source, fuzzy, spaces)
            out[f"ofa/{name}/overlap/{fuzzy:d}{spaces:d}"] = json.dumps(found)
        found = utils.get_overlapping_tokens(target, source)
        start = np.zeros((len(target), DIM), dtype=np.float32)
        for index, original in found.values():
            start[index] = source_matrix(len(source))[original]
        table, not_found, kept = utils.create_target_embeddings(
            made["source"], made[name], source, target, source_matrix(len(source)), start, found, {}
        )
        out[f"ofa/{name}/table"] = table
        out[f"ofa/{name}/found"] = json.dumps([not_found, kept])


def main(published: str) -> None:
    GOLDEN.mkdir(exist_ok=True)
    source, targets = wordpiece(), {"byte-level": byte_level(), "unigram": unigram()}
    for name, tokenizer in {"source": source, **targets}.items():
        tokenizer.backend_tokenizer.save(str(GOLDEN / f"{name}.json"), pretty=False)
    (GOLDEN / "dictionary.txt").write_text(PAIRS.replace(" ", "\t").replace("|", "\n") + "\n", "utf-8")
    train_models(targets)
    out: dict = {}
    wechsel_results(source, targets, out)
    focus_results(source, targets, out)
    ofa_results(source, targets, out, published)
    np.savez_compressed(GOLDEN / "expected.npz", **{key: np.asarray(value) for key, value in out.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
