"""The shape of the house: imports point down, files stay small, and each op is found by its one word."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ofa_fast"
OPS = ("topk_similarity", "truncated_svd", "factorized_embedding", "factorized_cross_entropy")

# A module may import what stands on its own line or above it, except that neighbours on a line do not know each other.
LAYERS = [
    {"_native"},
    {"ops"},
    {"nn"},
    {"initialization"},
    {"models"},
    {"compat"},
    {"training", "evaluation"},
    {"study"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEAVES = {path.stem for path in PACKAGE.glob("_*.py") if not path.stem.startswith(("__", "_cli_"))}

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("ofa_fast", "csrc", "tests", "benchmarks", "examples")
    for suffix in ("py", "h", "cpp", "cu")
    for path in (ROOT / folder).rglob(f"*.{suffix}")
)


def layer_of(module: str) -> str:
    """The layer that a dotted module below ``ofa_fast`` belongs to: "cli" for ``ofa_fast._cli_init``."""
    name = module.split(".")[1]
    return "cli" if name.startswith("_cli_") else name


def imports_of(path: Path) -> set[str]:
    """The dotted names below ``ofa_fast`` that a file imports anywhere, inside functions included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "ofa_fast" else {module}
    return {name for name in found if name.startswith("ofa_fast.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if own == "ofa_fast.__init__":
        return  # the public names come from all layers but the command line
    own = layer_of(own)
    for module in imports_of(path):
        other = layer_of(module)
        if other in {own, "__version__"} | LEAVES:
            continue
        assert own not in LEAVES, f"a leaf imports {module}"
        if other in LEVEL:
            assert LEVEL[other] < LEVEL[own], f"{own} must not import {module}"
        else:
            assert own == "cli", f"{own} must import {module} from the layer that it lives in"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_layer(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert own == "ofa_fast.__init__" or layer_of(own) in LEVEL or layer_of(own) in LEAVES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: what is this file hiding?"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.*")), ids=lambda path: path.name)
def test_the_core_never_sees_torch(path):
    included = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#include")]
    assert not [line for line in included if any(word in line for word in ("torch", "ATen", "c10"))]


@pytest.mark.parametrize("op", OPS)
def test_each_op_is_found_by_its_word(op):
    expected = [
        f"csrc/{op}/{op}.h",
        f"csrc/{op}/cpu.cpp",
        f"ofa_fast/ops/{op}/__init__.py",
        f"ofa_fast/ops/{op}/reference.py",
        f"tests/ops/test_{op}.py",
        f"benchmarks/{op}.py",
        f"docs/ops/{op}.md",
    ]
    assert [path for path in expected if not (ROOT / path).exists()] == []
    assert op in (ROOT / "CMakeLists.txt").read_text()
    reference = (ROOT / f"ofa_fast/ops/{op}/reference.py").read_text().splitlines()
    assert len(reference) <= 60, "a reference is short enough to be read as the definition"


def test_ops_are_the_folders():
    folders = {path.parent.name for path in (PACKAGE / "ops").glob("*/__init__.py")}
    kernels = {path.parent.name for path in (ROOT / "csrc").glob("*/*.h")}
    assert folders == kernels == set(OPS)
