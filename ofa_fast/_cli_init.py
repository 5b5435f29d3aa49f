"""``ofa-fast init``: read a source model, give it the new vocabulary at each rank, write Hugging Face folders."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from ofa_fast._cli_types import positive, ranks

_INPUTS = ("source", "tokenizer", "vectors")


def register(_commands, subparser) -> None:
    add = subparser(
        "init",
        run,
        "give a pretrained model a new vocabulary",
        "init --source sentence-transformers/all-MiniLM-L6-v2 --tokenizer my-tokenizer/ \\\n"
        "      --vectors vectors.safetensors --rank 100,full --out initialised/\n"
        "  torchrun --nproc-per-node 8 -m ofa_fast.cli init ...     shares the vocabulary out to processes\n"
        "  ofa-fast init --out initialised/ --explain water 1234     says what tokens were made from",
    ).add_argument
    add("--source", metavar="MODEL", help="folder or hub id of the pretrained model and its tokenizer")
    add("--tokenizer", metavar="TOKENIZER", help="folder or hub id of the new tokenizer")
    add(
        "--vectors",
        type=Path,
        metavar="FILE",
        help="aligned word vectors of both vocabularies' languages; mean, gaussian and random need none",
    )
    add("--language", help="ISO 639-3 code of all words, where the vectors carry none")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; DIR/rank-R/ where several ranks are given",
    )
    add(
        "--rank",
        type=ranks,
        default=[100],
        metavar="R,...",
        help="ranks of the table; 'full' keeps it dense (default: 100)",
    )
    methods = ("ofa", "wechsel", "focus", "mean", "gaussian", "random")
    add("--method", choices=methods, default="ofa", help="ofa, or one of its rivals (default: ofa)")
    add("--neighbors", type=positive, help="source subwords that make up a new one (default: 10; focus: 256)")
    add("--temperature", type=float, help="of the softmax over their similarities (default: 0.1; focus: 1)")
    add("--weighting", choices=("softmax", "sparsemax"), help="of the similarities (default: the method's own)")
    add("--exact", action="store_true", help="copy no token that differs in case or normalisation")
    add(
        "--word-weights",
        choices=("rank",),
        help="rank: a word counts as 1 / its place in its language (default: alike)",
    )
    add(
        "--copied-share",
        type=float,
        default=1.0,
        metavar="C",
        help="of a shared token's row in its new row; the rest is mixed as that of other tokens (default: 1)",
    )
    add("--seed", type=int, default=114514, help="of the random rows (default: 114514)")
    add("--parity", action="store_true", help="reproduce the published implementation, its quirks included")
    add(
        "--export-npy", action="store_true", help="write the matrices as the published implementation's .npy files, too"
    )
    add("--device", default="cpu", metavar="NAME", help="of the SVD and the search, such as cuda (default: cpu)")
    add(
        "--memory",
        metavar="SIZE",
        help="the most to hold at a time, such as 8GB; word vectors of text then wait on the disk (default: no bound)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="of stages kept for later runs (default: the user's cache folder)",
    )
    add("--cache-limit", metavar="SIZE", help="what is kept there at most (default: 16GiB)")
    add("--no-cache", action="store_true", help="keep nothing for later runs, and resume nothing")
    add("--overwrite", action="store_true", help="replace --out where it exists")
    add("--dry-run", action="store_true", help="print the counts and the memory that it would take, and stop")
    add(
        "--explain",
        nargs="+",
        metavar="TOKEN",
        help="what the rows of these tokens (texts or ids) were made from; without --source: of a finished --out, "
        "with --vectors also the words behind them",
    )


def run(args) -> None:
    if args.explain and not args.source:
        _explain(args)
        return
    for option in ("source", "tokenizer"):
        if not getattr(args, option):
            raise ValueError(f"--{option} is missing (see: ofa-fast init --help)")
    if args.explain and args.dry_run:
        raise ValueError("--explain needs the finished rows, which --dry-run does not make")
    _check(args)

    import torch.distributed as dist

    if os.environ.get("WORLD_SIZE", "1") == "1":
        _run(args, None)
        return
    dist.init_process_group("gloo")
    try:
        # One process speaks for all.
        with redirect_stdout(sys.stdout if dist.get_rank() == 0 else None):
            _run(args, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _check(args) -> None:
    """What can be refused before the vectors are read, which takes long."""
    from ofa_fast._device import usable
    from ofa_fast._files import check_free
    from ofa_fast.initialization import arguments
    from ofa_fast.initialization.memory import parse_memory

    for size in filter(None, (args.memory, args.cache_limit)):
        parse_memory(size)
    usable(args.device)
    if not args.dry_run:
        check_free(args.out, args.overwrite)
    chosen = (args.method, args.neighbors, args.temperature, args.weighting)
    arguments.method_of(*chosen, args.vectors, args.seed, args.parity)
    arguments.copied_share_of(args.copied_share, args.method, args.parity)
    arguments.word_weights_of(args.word_weights, None, args.parity)


def _run(args, group) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from ofa_fast import WordVectors, initialize
    from ofa_fast._files import atomic_folder
    from ofa_fast.initialization.diagnosis import peak_memory
    from ofa_fast.initialization.html_report import write_html_report
    from ofa_fast.models._convert import has_untied_head

    first = group is None or group.rank() == 0
    config = AutoConfig.from_pretrained(args.source)
    source_tokenizer = AutoTokenizer.from_pretrained(args.source)
    target_tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    # With a bound on memory, rows that would have to be held in it wait on the disk.
    folder = next(parent for parent in args.out.absolute().parents if parent.is_dir()) if args.memory else None
    vectors = WordVectors.load(args.vectors, args.language, folder=folder) if args.vectors else None
    cache = _cache(args)
    _print_plan(args, config, (source_tokenizer, target_tokenizer), vectors, group, cache)
    if args.dry_run:
        return

    with atomic_folder(args.out, overwrite=args.overwrite) if first else nullcontext() as folder:
        torch.manual_seed(args.seed)  # a checkpoint without a language-modelling head gets a fresh one
        model = load_model(args.source, config)

        def initialized(table: torch.nn.Module, bias: torch.Tensor | None) -> list:
            return initialize(
                table.weight.detach().to(args.device),
                source_tokenizer,
                target_tokenizer,
                vectors,
                rank=args.rank,
                neighbors=args.neighbors,
                temperature=args.temperature,
                method=args.method,
                weighting=args.weighting,
                seed=args.seed,
                parity=args.parity,
                source_bias=bias,
                progress=sys.stderr.isatty(),
                group=group,
                cache=cache,
                memory=args.memory,
                fuzzy=not args.exact,
                word_weights=args.word_weights,
                copied_share=args.copied_share,
            )

        head = model.get_output_embeddings()
        untied = has_untied_head(model)
        if untied and model.config.get_text_config().tie_word_embeddings:
            print("head      a table of its own, whatever the configuration says: twice the results and time")
        results = initialized(model.get_input_embeddings(), None if untied else getattr(head, "bias", None))
        heads = initialized(head, getattr(head, "bias", None)) if untied else [None] * len(args.rank)
        if not first:
            return
        inputs = {name: None if (value := getattr(args, name)) is None else str(value) for name in _INPUTS}
        _print_counts(results[0].report["counts"], results[0].report["scripts"])
        for rank, result, own in zip(args.rank, results, heads, strict=True):
            result.report |= {"command": args.command, "inputs": inputs, "memory": {"peak": peak_memory()}}
            if own is not None:
                result.report["head"] = {key: own.report[key] for key in ("explained_variance", "seconds")}
            name = _rank_name(rank) if len(args.rank) > 1 else ""
            _write(folder / name, model, result, own, target_tokenizer, args.export_npy)
        if len(args.rank) > 1:
            write_html_report(folder)
    seconds = sum(sum(each.report["seconds"].values()) for each in (results[0], heads[0]) if each is not None)
    ends = "rows at both ends" if untied else "rows"
    print(f"{args.out}: {_summary(results[0].report['counts'])} {ends}, initialised in {seconds:.1f} s")
    print(f"{args.out / 'initialization.html'} has the details")
    _print_warnings(results[0].report["warnings"])
    for token in args.explain or ():
        print(_explained(results[0], token, None))


def _rank_name(rank: int | None) -> str:
    return f"rank-{'full' if rank is None else rank}"


def auto_class(config):
    """The whole of an encoder-decoder; else masked before causal language modelling; else ``AutoModel``."""
    import transformers

    kinds = [
        (transformers.AutoModelForMaskedLM, transformers.MODEL_FOR_MASKED_LM_MAPPING),
        (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    ]
    if getattr(config, "is_encoder_decoder", False):
        kinds = [(transformers.AutoModelForSeq2SeqLM, transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)]
    return next((auto for auto, kind in kinds if type(config) in kind), transformers.AutoModel)


def load_model(name: str, config):
    """The checkpoint with its language-modelling head, of the first kind that there is, or without one."""
    import transformers

    auto = auto_class(config)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, loading = auto.from_pretrained(name, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loading["missing_keys"]:
        print(f"{name} lacks these weights, which start at random: {', '.join(sorted(loading['missing_keys']))}")
    return model.eval()


def _write(folder: Path, model, result, head, tokenizer, export_npy: bool) -> None:
    from ofa_fast import build_model
    from ofa_fast.initialization.html_report import write_html_report

    folder.mkdir(exist_ok=True)
    build_model(model, result, tokenizer, head).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result.write(folder, export_npy=export_npy, tables=False)
    write_html_report(folder)


def _print_warnings(warnings: list[dict]) -> None:
    for warning in warnings:
        print(f"ofa-fast: warning: {warning['message']}", file=sys.stderr)


def _explain(args) -> None:
    from ofa_fast import WordVectors
    from ofa_fast.initialization import Initialization
    from ofa_fast.initialization.explain import folder_of

    folder = folder_of(args.out)
    result = Initialization.read(folder)
    behind = None
    if args.vectors:
        from transformers import AutoTokenizer

        behind = AutoTokenizer.from_pretrained(folder), WordVectors.load(args.vectors, language=args.language)
    print("\n\n".join(_explained(result, token, behind) for token in args.explain))


def _explained(result, token: str, behind: tuple | None) -> str:
    from ofa_fast.initialization.explain import explain, find, words_of

    indices = find(result, token)
    words = words_of(indices, *behind) if behind else {}
    return "\n".join(explain(result, index, words.get(index)) for index in indices)


def _cache(args):
    from ofa_fast.initialization import Cache
    from ofa_fast.initialization.cache import LIMIT, default_folder
    from ofa_fast.initialization.memory import parse_memory

    if args.no_cache or args.vectors is None:
        return None
    limit = parse_memory(args.cache_limit) if args.cache_limit else LIMIT
    return Cache(args.cache or default_folder(), limit)


def _print_plan(args, config, tokenizers, vectors, group, cache) -> None:
    """What it will take, at once; for a dry run also what it would give, which takes a tokenisation of the words."""
    import torch

    from ofa_fast.initialization import estimate, plan
    from ofa_fast.initialization.diagnosis import warnings_of
    from ofa_fast.models._convert import has_untied_head

    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    ends = 2 if has_untied_head(model) else 1
    shape = model.get_input_embeddings().weight.shape
    asked = {
        "rank": args.rank,
        "neighbors": args.neighbors,
        "method": args.method,
        "parity": args.parity,
        "memory": args.memory,
    }
    print(f"source    {config.model_type}, table {shape[0]:,} x {shape[1]}")
    if vectors is not None:
        print(f"vectors   {vectors.vectors.shape[0]:,} words x {vectors.vectors.shape[1]}")
    if cache is not None:
        print(f"cache     {cache.folder}, at most {cache.limit / 1e9:,.1f} GB")
    if args.dry_run:
        asked |= {"progress": sys.stderr.isatty(), "group": group, "cache": cache, "fuzzy": not args.exact}
        planned = plan(shape, *tokenizers, vectors, **asked)
        _print_counts(planned["counts"], planned["scripts"])
        if group is None or group.rank() == 0:
            _print_warnings(warnings_of(planned))
        memory = planned["memory"]
    else:
        memory = estimate(shape, tokenizers, vectors, **asked)
    body = sum(p.numel() for p in model.parameters()) - ends * shape.numel()
    rows, dim = len(tokenizers[1]), shape[1]
    tables = [ends * (rows * (rank or dim) + ((rank or 0) * dim)) for rank in args.rank]
    for rank, table in zip(args.rank, tables, strict=True):
        print(f"{_rank_name(rank):<10}table {table / 1e6:,.1f} M parameters, model {(body + table) / 1e6:,.1f} M")
    # The source model is held beside what initialize holds; then it, a new one and the results are.
    held = 4 * (body + (ends - 1) * shape.numel()) + (ends - 1) * memory["results"]
    peak = max(memory["peak"] + held, ends * memory["results"] + 4 * (2 * body + max(tables) + ends * shape.numel()))
    least = f", {(memory['least'] + held) / 1e6:,.0f} MB at least" if args.memory is None else ""
    print(f"memory    {peak / 1e6:,.0f} MB at most{least}, beside Python and its libraries", flush=True)


def _print_counts(counts: dict, scripts: dict) -> None:
    print(f"target    {_summary(counts)}")
    for script, of_script in scripts.items():
        print(f"          {script:<12}{_summary(of_script)}")


def _summary(counts: dict) -> str:
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in ("copied", "similar", "random"))
