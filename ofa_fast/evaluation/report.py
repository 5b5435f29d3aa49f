"""A report of ``evaluate`` in words: as Markdown and LaTeX, and all its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ofa_fast._files import atomic_file

TITLES = {
    "retrieval": "Sentence retrieval",
    "classification": "Text classification",
    "ner": "Named entity recognition",
    "pos": "Part-of-speech tagging",
}
METRICS = {"macro_f1": "macro-F1", "micro_f1": "micro-F1", "f1": "F1", "seqeval_f1": "seqeval F1"}
SUFFIXES = (".json", ".md", ".tex", ".html")
GROUPS = {"scripts": "script", "families": "family"}
# Numbers of a language that have a column of their own, beside the score.
_MORE = ("top1", "top5", "macro_f1", "micro_f1", "accuracy", "seqeval_f1", "precision", "recall", "chance", "majority")
_COUNTS = ("words", "entities", "dropped", "empty", "cut")


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric.replace("top", "top-") + " accuracy" if "top" in metric else metric)


def column_name(name: str) -> str:
    return METRICS.get(name, name.replace("top", "top-"))


def describe(report: dict) -> str:
    """One sentence on what was measured."""
    seeds = report["seeds"]
    runs = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    if report["task"] == "retrieval":
        settings = report["settings"]
        how = (
            f"with {report['source']}, mean of both directions; layer {settings['layer']}, {settings['pooling']} "
            f"pooling, {settings['similarity']}"
        )
    else:
        how = f"fine-tuned on {report['source']}, {runs}"
    return f"{report['model']} on {report['data']}: {metric_name(report['metric'])} in %, {how}; 95 % intervals."


def numbers_of(report: dict, language: dict) -> dict[str, float | int]:
    """What a table shows of a language beside its score: other scores, then counts."""
    flat = {**language.get("mean", {}), **language}
    flat["chance"] = language.get("chance", {}).get(report["metric"])
    scores = [name for name in _MORE if name != report["metric"] and flat.get(name) is not None]
    return {name: flat[name] for name in (*scores, *_COUNTS) if flat.get(name) is not None}


def rows(report: dict) -> Iterator[list[str]]:
    """The table of languages as text: a head, a row each with the source last, then the average."""
    columns = list(dict.fromkeys(name for one in report["languages"].values() for name in numbers_of(report, one)))
    several = len(report["seeds"]) > 1
    head = ["language", "script", "family", "items", metric_name(report["metric"]), "interval"]
    yield [
        *head,
        *(["by seed"] if several else []),
        *map(column_name, columns),
    ]
    for code, one in sorted(report["languages"].items(), key=lambda item: item[0] == report["source"]):
        numbers = numbers_of(report, one)
        yield [
            f"{code} (source)" if code == report["source"] else code,
            one["script"],
            one["family"],
            str(one["items"]),
            *_score(one, several),
            *(_number(name, numbers.get(name)) for name in columns),
        ]
    yield ["average", "", "", "", *_score(report["average"], several), *("" for _ in columns)]


def group_rows(report: dict, kind: str) -> Iterator[list[str]]:
    several = len(report["seeds"]) > 1
    yield [GROUPS[kind], "languages", metric_name(report["metric"]), "interval", *(["by seed"] if several else [])]
    for name, one in report[kind].items():
        yield [name, str(len(one["languages"])), *_score(one, several)]


def _score(one: dict, several: bool) -> list[str]:
    low, high = one["interval"]
    seeds = [" ".join(percent(score) for score in one["seeds"])] if several else []
    return [percent(one["score"]), f"{percent(low)} – {percent(high)}", *seeds]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if name in _COUNTS else percent(value)


def markdown(report: dict) -> str:
    def table(lines: Iterable[list[str]]) -> str:
        head, *body = lines
        words = {"language", "script", "family"}
        align = ["---" if name in words else "---:" for name in head]
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *body))

    tables = [table(rows(report)), *(table(group_rows(report, kind)) for kind in GROUPS)]
    return "\n\n".join([f"# {TITLES[report['task']]}", describe(report), *tables]) + "\n"


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
} | {character: "\\" + character for character in "&%$#_{}"}


def latex(report: dict) -> str:
    """Tables for a paper that loads booktabs."""

    def escape(text: str) -> str:
        return "".join(_ESCAPES.get(character, character) for character in text)

    def table(lines: Iterable[list[str]], caption: str, label: str) -> str:
        head, *body = [" & ".join(map(escape, row)) + r" \\" for row in lines]
        if body[-1].startswith("average"):
            body.insert(-1, r"\midrule")
        words = sum(word in head.split(" & ")[:3] for word in ("language", "script", "family"))
        align = "l" * words + "r" * (head.count(" & ") + 1 - words)
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{escape(caption)}}}",
                rf"\label{{tab:{label}}}",
                rf"\begin{{tabular}}{{{align}}}",
                r"\toprule",
                head,
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    title = TITLES[report["task"]]
    tables = [table(rows(report), f"{title}. {describe(report)}", report["task"])]
    for kind, name in GROUPS.items():
        tables.append(table(group_rows(report, kind), f"{title} by {name}.", f"{report['task']}-{kind}"))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(tables) + "\n"


def write(report: dict, page: str, out: Path) -> None:
    """``out``.json, .md, .tex, and ``page`` as .html; a suffix that ``out`` has already is taken away."""
    base = out.with_suffix("") if out.suffix in SUFFIXES else out
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    for suffix, content in zip(SUFFIXES, (text, markdown(report), latex(report), page), strict=True):
        with atomic_file(base.with_name(base.name + suffix)) as file:
            file.write_text(content, "utf-8")
