"""``initialization.html``: what an initialisation did, for people, from the files that it wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ofa_fast._files import atomic_file
from ofa_fast._html import (
    COLORS,
    GREY,
    Column,
    Html,
    bar_chart,
    clock,
    details,
    element,
    facts,
    figures,
    histogram,
    join,
    legend,
    line_chart,
    number,
    page,
    size,
    table,
    tiles,
)
from ofa_fast.initialization.result import ORIGINS

PAGE = "initialization.html"
_COLORS = {"copied": COLORS[0], "similar": COLORS[1], "random": GREY, "unknown": COLORS[3]}
_ORIGIN_COLORS = {name: _COLORS[name] for name in ORIGINS}
_SCRIPTS_DRAWN, _ROWS_SHOWN = 14, 24
_OPTIONS = ("method", "neighbors", "temperature", "weighting", "fuzzy", "copied_share", "word_weights", "seed")


def reports_of(folder: str | os.PathLike) -> list[dict]:
    """The reports in ``folder``, or in its folders ``rank-...`` by falling rank.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(folder)
    files = [folder / "initialization.json"]
    if not files[0].is_file():
        files = sorted(folder.glob("rank-*/initialization.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no complete initialisation: initialization.json is missing")
    reports = [json.loads(file.read_text("utf-8")) for file in files]
    return sorted(reports, key=lambda report: report["rank"])


def write_html_report(folder: str | os.PathLike) -> Path:
    """Write ``html_report(folder)`` as ``folder/initialization.html``; absent or complete."""
    path = Path(folder) / PAGE
    with atomic_file(path) as file:
        file.write_text(html_report(folder), "utf-8")
    return path


def html_report(folder: str | os.PathLike) -> str:
    """A self-contained page about the initialisation in ``folder``, or about all ranks of ``folder/rank-*``.

    It is made from ``initialization.json`` alone.

    Raises:
        FileNotFoundError: the folder holds no complete initialisation.
    """
    reports = reports_of(folder)
    report = reports[-1]
    ranks = ", ".join(_rank(each) for each in reports)
    inputs = report.get("inputs", {})
    title = f"Initialisation at rank {ranks}" if len(reports) == 1 else f"Initialisation at ranks {ranks}"
    names = [Path(inputs[name]).name for name in ("source", "tokenizer") if inputs.get(name)]
    subtitle = f"{' → '.join(names)}{' · ' if names else ''}method {report['method']}"
    if report["parity"]:
        subtitle += ", as published (parity)"
    sections = [
        _headline(report, reports),
        ("Where the rows come from", _origins(report)),
        ("Ranks", _ranks(reports)),
        ("Languages", _languages(report)),
        ("How near the neighbours are", _neighbors(report)),
        ("How the vocabularies overlap", _overlap(report)),
        ("Time, memory, versions", _provenance(report, reports)),
    ]
    version = report["versions"]["ofa-fast"]
    warnings = [warning["message"] for warning in report.get("warnings", ())]
    footer = f"Written by ofa-fast {version} from initialization.json, which holds all numbers of this page."
    return page(title, sections, subtitle, warnings, footer, contents=True)


def _rank(report: dict) -> str:
    return str(report["rank"]) if report["factorized"] else f"{report['rank']} (full)"


def _headline(report: dict, reports: Sequence[dict]) -> Html:
    counts = report["counts"]
    tokens = counts["rows"] - counts["padding_rows"]
    shares = [(f"{number(counts[kind] / max(1, tokens), '.1%')}", kind) for kind in ("copied", "similar")]
    random = (counts["random"] - counts["padding_rows"]) / max(1, tokens)
    words = {
        "copied": "copied from the same source token",
        "similar": "mixed from similar source tokens",
    }
    seconds = sum(report["seconds"].values())
    sizes = sorted({each["parameters"]["factorized"] for each in reports})
    span = "–".join(dict.fromkeys(f"{size / 1e6:,.1f}" for size in (sizes[0], sizes[-1])))
    return tiles(
        [
            (number(tokens), "tokens of the new vocabulary"),
            *((share, words[kind]) for share, kind in shares),
            (number(random, ".1%"), "random"),
            (f"{span}\u00a0M", "parameters of the table"),
            (clock(seconds), "to initialise"),
        ]
    )


def _origins(report: dict) -> list:
    scripts = list(report["scripts"].items())
    drawn = scripts[:_SCRIPTS_DRAWN]
    names = [name for name, _ in drawn]
    shares = {kind: [counts[kind] / counts["tokens"] for _, counts in drawn] for kind in ORIGINS}
    tokens = {kind: [counts[kind] for _, counts in drawn] for kind in ORIGINS}
    charts = figures(
        bar_chart("Tokens by script", names, tokens, "tokens", stacked=True, horizontal=True, colors=_ORIGIN_COLORS),
        bar_chart(
            "Share by script", names, shares, "share of the script's tokens", stacked=True, horizontal=True,
            format=".0%", colors=_ORIGIN_COLORS,
        ),
    )  # fmt: skip
    columns = ["script", *(Column(name, ",d") for name in ("tokens", *ORIGINS)), Column("not random", ".1%", bar=1.0)]
    rows = [[name, *(counts[kind] for kind in ("tokens", *ORIGINS)), counts["coverage"]] for name, counts in scripts]
    words = (
        "A copied row is that of the same token of the source model, a similar one the weighted mean of the rows of "
        "the source tokens nearest in meaning; a random one knows only what an average row looks like. A token's "
        "script is that of its first letter; Common has no letter, Bytes is part of a character."
    )
    return [words, charts, details(f"All {len(rows)} scripts", table(rows, columns))]


def _ranks(reports: Sequence[dict]) -> list:
    columns = ["rank", "parameters", Column("of a dense table", ".1%"), Column("variance explained", ".1%", bar=1.0)]
    rows = [
        [
            _rank(each),
            each["parameters"]["factorized"],
            each["parameters"]["ratio"],
            each["explained_variance"],
        ]
        for each in reports
    ]
    curve = reports[-1].get("explained_variance_by_rank") or ()
    content: list = [table(rows, columns)]
    if len(curve) > 1:
        marks = [
            (each["rank"], f"{each['rank']}: {number(each['explained_variance'], '.0%')}")
            for each in reports
            if each["factorized"] and each["rank"] <= len(curve)
        ]
        line = line_chart(
            "Variance of the source table that a rank keeps",
            {"": list(enumerate(curve, 1))},
            "rank",
            "variance explained",
            y_format=".0%",
            zero=True,
            marks=marks,
        )
        content.append(figures(line, Html("<div></div>")))
    return content


def _languages(report: dict) -> list:
    languages = report.get("languages") or {}
    if not languages:
        return ["No word vectors, so no languages are known."]
    kinds = (*ORIGINS, "unknown")
    rows = []
    for code, counts in languages.items():
        pieces = max(1, sum(counts[kind] for kind in kinds))
        amounts = [counts[kind] for kind in kinds]
        rows.append([
            code,
            counts["words"],
            amounts,
            *(amount / pieces for amount in amounts),
            counts["pieces_per_word"],
            None if counts["source_unknown"] > counts["sampled"] / 2 else counts["source_pieces_per_word"],
        ])  # fmt: skip
    columns = [
        "language",
        Column("words", ",d"),
        Column("pieces of its words", stack=kinds, colors=_COLORS),
        *(Column(kind, ".1%") for kind in kinds),
        Column("pieces a word", ".2f"),
        Column("before", ".2f"),
    ]
    sampled = max(counts["sampled"] for counts in languages.values())
    words = (
        f"Of up to {sampled} words of each language, spread evenly over the word vectors' order: what the pieces that "
        "the new tokenizer cuts them into were made from. Unknown pieces cannot be written by the new tokenizer. Fewer "
        "pieces a word than before, with the source's tokenizer, means shorter inputs; – where that one knows none."
    )
    return [words, legend(_COLORS), table(rows, columns, limit=_ROWS_SHOWN)]


def _neighbors(report: dict) -> list:
    similarity, examples = report.get("similarity") or {}, report.get("examples") or {}
    if not similarity.get("counts"):
        return ["No row was made from neighbours alone."]
    chart = histogram(
        "Similarity of the nearest source token",
        similarity["counts"],
        similarity["edges"],
        "cosine",
        "similar tokens",
        marks=[(similarity["median"], f"median {similarity['median']:.2f}")],
        colors={"": COLORS[1]},
    )
    weighting = "sparsemax" if report["weighting"] == "sparsemax" else f"softmax(cosine / {report['temperature']:g})"
    words = (
        f"Each similar row is a mean over its {report['neighbors']} nearest source tokens, weighted by {weighting}. "
        f"Random vectors would lie at about {similarity['chance']:.2f}: the further right, the more is known. "
        "▁ marks the beginning of a word."
    )
    titles = {
        "spread": "From all over the vocabulary",
        "most_certain": "Most certain: the nearest neighbour is nearest",
        "least_certain": "Least certain: even the nearest neighbour is far",
    }
    lists = [_example_table(examples[name], title) for name, title in titles.items() if examples.get(name)]
    return [words, figures(chart, lists[0] if lists else Html("<div></div>")), *(figures(*lists[1:]),)]


def _example_table(examples: Sequence[dict], title: str) -> Html:
    rows = [
        [
            element("bdi", example["token"]),
            example["neighbors"][0]["similarity"] if example["neighbors"] else None,
            join(*_made_of(example["neighbors"][:3])),
        ]
        for example in examples
    ]
    return table(rows, ["token", Column("cosine", ".2f"), "made from (weight)"], title)


def _made_of(neighbors: Sequence[dict]) -> list[object]:
    parts: list[object] = []
    for neighbor in neighbors:
        parts += [", " if parts else "", element("bdi", neighbor["token"])]
        parts.append(element("span", f" {neighbor['weight']:.2f}", class_="note"))
    return parts


def _overlap(report: dict) -> list:
    counts, overlap = report["counts"], report.get("overlap") or {}
    rows = [
        ("source vocabulary", f"{number(counts['source_tokens'])} tokens, {overlap.get('source_kind', 'unknown')}"),
        ("new vocabulary", f"{number(counts['target_tokens'])} tokens, {overlap.get('target_kind', 'unknown')}"),
        ("copied", f"{number(counts['copied'])} tokens"),
    ]
    if overlap:
        share = overlap["source_tokens_used"] / max(1, counts["source_tokens"])
        rows[-1:] = [
            ("copied, same text", number(overlap["same_text"])),
            ("copied, other case", number(overlap["other_case"])),
            ("copied, special tokens", number(overlap["special"])),
            ("source tokens in use", f"{number(overlap['source_tokens_used'])} ({number(share, '.1%')} of them)"),
        ]
    for side, name in (("source", "source tokens with a vector"), ("target", "new tokens with a vector")):
        if counts.get(f"{side}_tokens_with_vector") is not None:
            share = counts[f"{side}_tokens_with_vector"] / max(1, counts[f"{side}_tokens"])
            rows.append((name, f"{number(counts[f'{side}_tokens_with_vector'])} ({number(share, '.1%')})"))
    return [facts(rows)]


def _provenance(report: dict, reports: Sequence[dict]) -> list:
    seconds = dict(report["seconds"])
    own = {_rank(each): each["seconds"]["rows"] for each in reports if len(reports) > 1}
    if own:
        seconds.pop("rows")
        seconds |= {f"rows, rank {rank}": value for rank, value in own.items()}
    names = [name.replace("_", " ") for name in seconds]
    label = "seconds; all ranks share the other stages" if own else "seconds"
    times = bar_chart("Seconds a stage", names, list(seconds.values()), label, horizontal=True, format=".3g")
    memory = report.get("memory") or {}
    pairs = [(f"{what} memory", size(memory[key])) for key, what in (("peak", "peak"),) if memory.get(key)]
    pairs += [(name, version) for name, version in report["versions"].items()]
    inputs = [(name, element("code", value)) for name, value in report.get("inputs", {}).items() if value]
    # Reports of earlier versions lack the newest.
    options = [(name, report.get(name)) for name in _OPTIONS]
    hashes = [(name.replace("_", " "), element("code", digest)) for name, digest in report["sha256"].items() if digest]
    command = [element("h3", "Command"), element("pre", report["command"])] if report.get("command") else []
    return [
        figures(times, facts(pairs)),
        *command,
        element("h3", "Inputs and options"),
        facts([*inputs, *((name.replace("_", " "), "–" if value is None else value) for name, value in options)]),
        element("h3", "SHA-256 of the inputs"),
        facts(hashes),
    ]
