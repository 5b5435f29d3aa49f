"""``import ofa_fast`` is cheap, and makes the Auto classes know our models in whatever order things are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ofa_fast


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_no_heavy_package():
    heavy = {"torch", "transformers", "numpy", "triton", "datasets", "ofa_fast._native"}
    assert run(f"import sys, ofa_fast; print(set(sys.modules) & {heavy})").strip() == "set()"


@pytest.mark.parametrize(
    "imports",
    [
        "import ofa_fast; from transformers import AutoConfig",
        "from transformers import AutoConfig; import ofa_fast",
    ],
)
def test_model_type_is_registered_in_any_order_without_model_code(imports):
    code = "import sys; from transformers import CONFIG_MAPPING; print('ofa-fast' in CONFIG_MAPPING, "
    code += "'transformers.modeling_utils' in sys.modules)"
    assert run(f"{imports}; {code}").split() == ["True", "False"]


def test_public_names_resolve():
    for name in ("FactorizedEmbedding", "FactorizedHead", "build_model", "to_dense", "ops", "nn", "models"):
        assert getattr(ofa_fast, name).__name__.rsplit(".")[-1] == name
        assert name in dir(ofa_fast)
    with pytest.raises(AttributeError, match="nosuch"):
        ofa_fast.nosuch  # noqa: B018


def test_twins_are_importable_by_name():
    from transformers import BertConfig, BertForMaskedLM

    from ofa_fast.models import FactorizedBertConfig, FactorizedBertForMaskedLM

    assert issubclass(FactorizedBertForMaskedLM, BertForMaskedLM)
    assert issubclass(FactorizedBertConfig, BertConfig)
    with pytest.raises(ImportError):
        from ofa_fast.models import FactorizedNoSuchModel  # noqa: F401
