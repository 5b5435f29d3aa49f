"""The command line on tiny real input: what each command writes and says, and how it refuses bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    logging,
)

from ofa_fast import WordVectors
from ofa_fast.cli import main
from ofa_fast.initialization.subwords import is_mapped

BIBLE = Path(__file__).parents[1] / "examples" / "data" / "bible"
LANGUAGES = ("eng", "deu", "chr")
LINES = 400
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
COMMANDS = [
    "vectors build",
    "vectors convert",
    "vectors align",
    "vectors evaluate",
    "init",
    "train",
    "evaluate",
    "compare",
    "export",
    "info",
]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def save_tokenizer(texts: list[Path], size: int, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL.values()), show_progress=False)
    tokenizer.train([str(text) for text in texts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **SPECIAL).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with verses of three languages, a tiny English model, a new tokenizer, and word vectors."""
    logging.disable_progress_bar()
    place = tmp_path_factory.mktemp("cli")
    (place / "bible").mkdir()
    for language in LANGUAGES:
        lines = (BIBLE / f"{language}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / "bible" / f"{language}.txt").write_text("".join(lines[:LINES]), encoding="utf-8")
    save_tokenizer([place / "bible" / "eng.txt"], 600, place / "source")
    save_tokenizer([place / "bible" / f"{language}.txt" for language in LANGUAGES], 900, place / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vocab_size = len(AutoTokenizer.from_pretrained(place / "source"))
    config = BertConfig(vocab_size=vocab_size, max_position_embeddings=64, **sizes)
    BertForMaskedLM(config).save_pretrained(place / "source")
    texts = [str(place / "bible" / f"{one}.txt") for one in LANGUAGES]
    assert main(["vectors", "build", "--parallel", *texts, "--dim", "16", "--out", str(place / "v.safetensors")]) == 0
    return place


def init(place: Path, out: Path, *more: str) -> list[str]:
    return [
        *("init", "--source", str(place / "source"), "--tokenizer", str(place / "tokenizer")),
        *("--vectors", str(place / "v.safetensors"), "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def initialised(place) -> Path:
    assert main(init(place, place / "initialised", "--rank", "8,full", "--export-npy")) == 0
    return place / "initialised"


def refusal(arguments: list[str], capsys) -> str:
    """The message of a command that must fail: one line on standard error, exit code 2."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("ofa-fast: error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"ofa-fast {command}" in (said.split("example:")[1] if command else said)


def test_help_imports_nothing_heavy():
    code = "import sys; from ofa_fast.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.splitlines()[-1] == "[]"


def test_vectors_build_aligns_the_languages(place):
    vectors = WordVectors.load(place / "v.safetensors")
    assert set(vectors.languages) == set(LANGUAGES) and vectors.vectors.shape == (len(vectors.words), 16)
    row = {key: vectors.vectors[i] for i, key in enumerate(vectors.keys)}
    jesus, german, other = row["eng:$Jesus$"], row["deu:$Jesus$"], row["deu:$Haus$"]
    assert cosine(jesus, german) > cosine(jesus, other)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_convert_and_evaluate(tmp_path, place, capsys):
    text = tmp_path / "tiny.vec"
    text.write_text("3 2\nhaus 1 0\nberg 0 1\nwein 1 1\n")
    assert main(["vectors", "convert", str(text), "--language", "deu", "--out", str(tmp_path / "deu.safetensors")]) == 0
    assert WordVectors.load(tmp_path / "deu.safetensors").keys == ["deu:$haus$", "deu:$berg$", "deu:$wein$"]

    dictionary = tmp_path / "dictionary.txt"
    dictionary.write_text("jesus\tjesus\nlord\therr\n")
    capsys.readouterr()
    command = ["vectors", "evaluate", str(place / "v.safetensors"), "--dictionary", str(dictionary)]
    assert main([*command, "--source", "eng", "--target", "deu"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_vectors_build_takes_lines_and_a_pivot(tmp_path, place):
    texts = [str(place / "bible" / f"{language}.txt") for language in LANGUAGES]
    command = ["vectors", "build", "--parallel", *texts, "--dim", "8", "--out", str(tmp_path / "v.safetensors")]
    assert main([*command, "--lines", "1-150", "--pivot", "deu"]) == 0
    assert len(WordVectors.load(tmp_path / "v.safetensors")) < len(WordVectors.load(place / "v.safetensors"))
    with pytest.raises(SystemExit):
        main([*command, "--lines", "9-3"])


def test_dry_run_counts_and_writes_nothing(place, tmp_path, capsys):
    assert main(init(place, tmp_path / "out", "--rank", "8,full", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "copied" in said and "Cherokee" in said and "MB at least" in said
    assert list(tmp_path.iterdir()) == []


def test_init_writes_loadable_folders(place, initialised):
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    for name in ("rank-8", "rank-full"):
        model, loading = AutoModelForMaskedLM.from_pretrained(initialised / name, output_loading_info=True)
        assert not loading["missing_keys"] and not loading["unexpected_keys"]
        assert model.get_input_embeddings().num_embeddings == len(tokenizer)
        assert AutoTokenizer.from_pretrained(initialised / name).get_vocab() == tokenizer.get_vocab()
        report = json.loads((initialised / name / "initialization.json").read_text())
        origin = load_file(initialised / name / "initialization.safetensors")["origin"]
        counts = [report["counts"][kind] for kind in ("copied", "similar", "random")]
        assert origin.bincount(minlength=3).tolist() == counts and counts[0] > 100 and counts[1] > 100
    saved = load_file(initialised / "rank-8" / "model.safetensors")
    (coordinates,) = (tensor for name, tensor in saved.items() if name.endswith("embeddings.coordinates"))
    exported = np.load(initialised / "rank-8" / "target_matrix.npy")
    np.testing.assert_array_equal(coordinates.numpy(), exported)


def test_one_rank_is_the_folder_itself(place, tmp_path):
    assert main(init(place, tmp_path / "out", "--rank", "8", "--method", "random")) == 0
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_two_processes_initialise_what_one_does(place, tmp_path, monkeypatch, head):
    """Every file is the same bit for bit; small pieces, so that each process has several."""
    small = "rows.ROWS_PER_STREAM = 64; subwords.WORDS_PER_CHUNK = 99"
    program = f"import sys; from ofa_fast.initialization import rows, subwords; {small}"
    (tmp_path / "program.py").write_text(f"{program}; from ofa_fast.cli import main; sys.exit(main())")
    monkeypatch.setattr("ofa_fast.initialization.rows.ROWS_PER_STREAM", 64)
    monkeypatch.setattr("ofa_fast.initialization.subwords.WORDS_PER_CHUNK", 99)
    options = ["--rank", "8,full", "--export-npy", "--copied-share", "0.5"]
    if head == "untied":
        options += ["--source", str(tmp_path / "source")]
        model = BertForMaskedLM.from_pretrained(place / "source")
        model.cls.predictions.decoder.weight = torch.nn.Parameter(torch.randn(model.config.vocab_size, 32))
        model.save_pretrained(tmp_path / "source")
        AutoTokenizer.from_pretrained(place / "source").save_pretrained(tmp_path / "source")
    assert main(init(place, tmp_path / "one", *options)) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "program.py"), *init(place, tmp_path / "two", *options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", initialised in") == 1

    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    files = [name for name in files if name.suffix != ".html"]  # of initialization.json alone, times included
    assert len(files) > 10
    varying = ("seconds", "memory", "command", "head")
    for name in files:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        if name.name == "initialization.json":
            one, two = ({key: value for key, value in json.loads(r).items() if key not in varying} for r in (one, two))
        assert one == two, name


def test_init_says_where_it_keeps_what_and_a_second_run_finds_it(place, tmp_path, capsys):
    options = ["--rank", "8", "--cache", str(tmp_path / "cache"), "--memory", "100GB"]
    assert main(init(place, tmp_path / "one", *options)) == 0
    said = capsys.readouterr().out
    assert f"cache     {tmp_path / 'cache'}, at most 17.2 GB" in said and "MB at most" in said
    entries = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert {name.split("-")[0] for name in entries} == {"tokens", "subwords", "neighbors", "svd"}
    assert main(init(place, tmp_path / "two", *options, "--temperature", "0.2")) == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == entries
    assert main(init(place, tmp_path / "three", "--rank", "8", "--no-cache")) == 0
    one, three = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "three"))
    assert all(torch.equal(one[name], three[name]) for name in one)


def test_init_refuses_a_memory_that_is_too_small(place, tmp_path, capsys):
    given = init(place, tmp_path / "out", "--rank", "8", "--memory")
    assert "memory is 5 MB, but at least" in refusal([*given, "5MB"], capsys)
    assert "memory must be a size such as 8GB" in refusal([*given, "much"], capsys)
    assert not (tmp_path / "out").exists()


def test_a_bound_on_memory_leaves_the_rows_of_text_on_the_disk(place, tmp_path, monkeypatch):
    words = WordVectors.load(place / "v.safetensors")
    lines = (f"{key} {' '.join(map(repr, row))}" for key, row in zip(words.keys, words.vectors.tolist(), strict=True))
    (tmp_path / "words.vec").write_text("\n".join([f"{len(words)} {words.vectors.shape[1]}", *lines, ""]), "utf-8")
    loaded, load = [], WordVectors.load
    monkeypatch.setattr(WordVectors, "load", lambda *args, **kw: loaded.append(load(*args, **kw)) or loaded[-1])
    options = ["--rank", "8", "--no-cache", "--vectors", str(tmp_path / "words.vec")]
    for name, bound in (("held", []), ("bounded", ["--memory", "100GB"])):
        assert main(init(place, tmp_path / name, *options, *bound)) == 0
    assert [is_mapped(own.vectors) for own in loaded] == [False, True]
    held, bounded = (load_file(tmp_path / name / "model.safetensors") for name in ("held", "bounded"))
    assert all(torch.equal(held[name], bounded[name]) for name in held)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bounded", "held", "words.vec"]


def test_init_keeps_what_exists_unless_told(place, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "exists already" in refusal(init(place, tmp_path / "out", "--rank", "8"), capsys)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert main(init(place, tmp_path / "out", "--rank", "8", "--overwrite")) == 0
    assert not (tmp_path / "out" / "thesis.txt").exists()


def test_train_evaluate_export(place, initialised, tmp_path, capsys):
    text = [str(place / "bible" / f"{language}.txt") for language in LANGUAGES]
    train = ["train", str(initialised / "rank-8"), "--train-file", *text, "--out", str(tmp_path / "trained")]
    assert main([*train, "--steps", "3", "--batch-size", "4", "--max-length", "32"]) == 0
    losses = (tmp_path / "trained" / "losses.csv").read_text().splitlines()
    assert len(losses) == 1 + 3

    evaluate = ["evaluate", str(tmp_path / "trained"), "--data", str(place / "bible")]
    assert main([*evaluate, "--out", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["languages"]) == {"deu", "chr"}

    assert main(["export", str(tmp_path / "trained"), "--dense", "--out", str(tmp_path / "dense")]) == 0
    ids = torch.arange(5, 25)[None]
    ours, stock = (AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval() for name in ("trained", "dense"))
    assert type(stock) is BertForMaskedLM
    torch.testing.assert_close(stock(ids).logits, ours(ids).logits, rtol=1e-4, atol=1e-5)


def test_info_names_every_op(capsys):
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy", "torch"):
        assert word in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rank", "0"], "positive whole number"),
        (["--rank", "33"], "rank"),
        (["--neighbors", "-1"], "--neighbors"),
        (["--temperature", "0"], "temperature"),
        (["--source", "no/such/folder"], "no/such/folder"),
        (["--vectors", "missing.safetensors"], "missing.safetensors"),
        (["--method", "guess"], "guess"),
        # before the vectors are read
        (["--temperature", "0", "--vectors", "missing.safetensors"], "temperature"),
        (["--parity", "--copied-share", "0.5", "--vectors", "missing.safetensors"], "copied_share"),
        (["--parity", "--word-weights", "rank", "--vectors", "missing.safetensors"], "word_weights"),
        (["--memory", "lots", "--vectors", "missing.safetensors"], "lots"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_init_refuses_bad_options(place, tmp_path, capsys, more, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refusal(init(place, tmp_path / "out", "--rank", "8", *more), capsys)
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_truncated_vec(place, tmp_path, capsys):
    bad = tmp_path / "bad.vec"
    bad.write_text("3 2\nhaus 1 0\nberg 0\n")
    said = refusal(init(place, tmp_path / "out", "--rank", "8", "--vectors", str(bad), "--language", "deu"), capsys)
    assert "bad.vec" in said and "3" in said


def test_init_refuses_a_foreign_pickle(place, tmp_path, capsys):
    import pickle

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    bad = tmp_path / "bad.wv"
    bad.write_bytes(pickle.dumps(Payload()))
    assert "bad.wv" in refusal(init(place, tmp_path / "out", "--rank", "8", "--vectors", str(bad)), capsys)
    assert not (tmp_path / "owned").exists()


def test_init_refuses_a_table_with_nan(place, tmp_path, capsys):
    source = tmp_path / "source"
    BertForMaskedLM.from_pretrained(place / "source").save_pretrained(source)
    AutoTokenizer.from_pretrained(place / "source").save_pretrained(source)
    weights = load_file(source / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7, 3] = torch.nan
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert "row 7" in refusal(init(place, tmp_path / "out", "--source", str(source), "--rank", "8"), capsys)
    assert not (tmp_path / "out").exists()


def test_init_refuses_a_source_tokenizer_larger_than_its_table(place, tmp_path, capsys):
    source = tmp_path / "source"
    BertForMaskedLM.from_pretrained(place / "source").save_pretrained(source)
    AutoTokenizer.from_pretrained(place / "tokenizer").save_pretrained(source)
    assert "source_tokenizer" in refusal(init(place, tmp_path / "out", "--source", str(source), "--rank", "8"), capsys)


def test_debug_shows_the_traceback(place, tmp_path):
    with pytest.raises(ValueError, match="rank"):
        main(init(place, tmp_path / "out", "--rank", "33", "--debug"))


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_killed_init_leaves_nothing_that_looks_finished(place, tmp_path, delay):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ofa_fast.cli", *init(place, out, "--rank", "8,16,full")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Wait for the unfinished folder, so that the kill strikes while the result is being made.
    while process.poll() is None and not list(tmp_path.glob(".out.*.partial")):
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if out.exists():
        for rank in ("rank-8", "rank-16", "rank-full"):
            AutoModelForMaskedLM.from_pretrained(out / rank)
            json.loads((out / rank / "initialization.json").read_text())


def test_interrupted_init_says_so(place, tmp_path):
    # A process started in the background inherits that it ignores interrupts; a user's command does not.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from ofa_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *init(place, tmp_path / "out", "--rank", "8")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob(".out.*.partial")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and said.splitlines()[-1].startswith("ofa-fast: interrupted")
    assert list(tmp_path.iterdir()) == []
