"""``ofa-fast init``: read a source model, give it the new vocabulary at each rank, write Hugging Face folders."""

from __future__ import annotations

import sys
from pathlib import Path


def run(args) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from ofa_fast import WordVectors, initialize
    from ofa_fast._files import atomic_folder

    config = AutoConfig.from_pretrained(args.source)
    source_tokenizer = AutoTokenizer.from_pretrained(args.source)
    target_tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    vectors = WordVectors.load(args.vectors, language=args.language)
    _print_plan(args, config, source_tokenizer, target_tokenizer, vectors)
    if args.dry_run:
        return

    with atomic_folder(args.out, overwrite=args.overwrite) as folder:
        torch.manual_seed(args.seed)  # a checkpoint without a language-modelling head gets a fresh one
        model = load_source(args.source, config)
        head = model.get_output_embeddings()
        results = initialize(
            model.get_input_embeddings().weight.detach(),
            source_tokenizer,
            target_tokenizer,
            vectors,
            rank=args.rank,
            neighbors=args.neighbors,
            temperature=args.temperature,
            method=args.method,
            seed=args.seed,
            parity=args.parity,
            source_bias=None if head is None else getattr(head, "bias", None),
            progress=sys.stderr.isatty(),
        )
        for rank, result in zip(args.rank, results, strict=True):
            name = rank_folder(rank) if len(args.rank) > 1 else ""
            _write(folder / name, model, result, target_tokenizer, args.export_npy)
            print(f"{args.out / name}: {_summary(result)}")


def rank_folder(rank: int | None) -> str:
    return f"rank-{'full' if rank is None else rank}"


def load_source(name: str, config):
    """The checkpoint with its language-modelling head, masked before causal, or without one where its kind has none."""
    import transformers

    kinds = {
        transformers.AutoModelForMaskedLM: transformers.MODEL_FOR_MASKED_LM_MAPPING,
        transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    }
    auto = next((auto for auto, kind in kinds.items() if type(config) in kind), transformers.AutoModel)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, loading = auto.from_pretrained(name, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(verbosity)
    if loading["missing_keys"]:
        print(f"{name} lacks these weights, which start at random: {', '.join(sorted(loading['missing_keys']))}")
    return model.eval()


def _write(folder: Path, model, result, tokenizer, export_npy: bool) -> None:
    from ofa_fast import build_model

    folder.mkdir(exist_ok=True)
    build_model(model, result, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result.write(folder, export_npy=export_npy)


def _summary(result) -> str:
    counts = result.origin.bincount(minlength=3).tolist()
    return ", ".join(f"{count:,} {kind}" for count, kind in zip(counts, ("copied", "similar", "random"), strict=True))


def _print_plan(args, config, source_tokenizer, target_tokenizer, vectors) -> None:
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(config)
    source_rows, width = model.get_input_embeddings().weight.shape
    body = sum(p.numel() for p in model.parameters()) - source_rows * width
    words, dimensions = vectors.vectors.shape
    target_rows = len(target_tokenizer)
    ranks = [width if rank is None else rank for rank in args.rank]
    rows = [
        ("source model", f"{config.model_type}, {source_rows:,} x {width} table", 4 * (body + source_rows * width)),
        ("word vectors", f"{words:,} x {dimensions}", vectors.vectors.nbytes),
        (
            "subword vectors",
            f"{len(source_tokenizer):,} source and {target_rows:,} target subwords",
            4 * dimensions * (source_rows + target_rows),
        ),
        (
            "initialisations",
            f"{args.method}, rank {', '.join(map(str, ranks))}",
            sum(4 * rank * (source_rows + target_rows) for rank in ranks) + 12 * args.neighbors * target_rows,
        ),
        ("new model", f"largest of {len(ranks)}", 4 * (body + max(ranks) * target_rows)),
    ]
    for label, what, size in rows:
        print(f"{label:<17}{what:<48}{size / 2**20:>9,.0f} MiB")
    print(f"{'memory at most':<65}{sum(size for *_, size in rows) / 2**20:>9,.0f} MiB", flush=True)
