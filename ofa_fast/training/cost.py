"""What a run costs: energy and CO2e as codecarbon counts them, and the memory of the table against a dense one."""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JOULES_PER_KWH = 3.6e6
NOT_INSTALLED = "not measured: codecarbon is not installed (pip install 'ofa-fast[train]')"


def carbon_intensity(country: str | None) -> float | None:
    """Grams of CO2e a kWh in ``country``, from codecarbon's own tables: no request is sent. None for None.

    Raises:
        ValueError: codecarbon is not installed, or does not know the code.
    """
    if country is None:
        return None
    if find_spec("codecarbon") is None:
        raise ValueError(f"country: {country!r} was given, but {NOT_INSTALLED}")
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        raise ValueError(f"country: expected an ISO 3166 code of three letters such as DEU or KEN, got {country!r}")
    place = GeoMetadata(country_iso_code=country, country_name=known[country]["country_name"])
    return 1000 * Emissions(DataSource(), None).get_private_infra_emissions(Energy.from_energy(kWh=1), place)


class EnergyMeter:
    """The energy of processors, memory and GPUs while the block runs, of this machine or process, by codecarbon.

    Nothing in codecarbon can end a run: where it fails or is not installed, the energy is None and ``source`` says why.
    It reads the meters every 15 s in a thread of its own, sends nothing, and writes no file.

    Args:
        of: "machine", or "process" for the share of this process and its children.
    """

    def __init__(self, of: str = "machine") -> None:
        self._of = of
        self._tracker = None
        self._kwh: float | None = None
        self._start = self._seconds = 0.0
        self.source = NOT_INSTALLED

    def __enter__(self) -> EnergyMeter:
        if find_spec("codecarbon") is None:
            return self
        try:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads log_level
            self._tracker = OfflineEmissionsTracker(
                country_iso_code="USA",  # it wants one, without effect on an intensity that is given:
                force_carbon_intensity_g_co2e_kwh=1000,  # so its kilograms of CO2e are kWh
                output_methods=[],
                emissions_endpoint=None,
                allow_multiple_runs=True,
                tracking_mode=self._of,
                log_level="critical",
            )
            self._tracker.start()
            self.source = _source(self._tracker)
        except Exception as error:
            self._tracker, self.source = None, f"not measured: codecarbon failed ({type(error).__name__}: {error})"
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        if self._tracker is not None:
            self._kwh, self._tracker = self._tracker.stop(), None
            self._seconds = time.perf_counter() - self._start

    def kwh(self) -> float | None:
        """So far, or of the whole block once that has ended."""
        return self._kwh if self._tracker is None else self._tracker.flush()

    def watts(self) -> float | None:
        """Of the block that has ended."""
        return self._kwh * JOULES_PER_KWH / self._seconds if self._kwh is not None else None


def _source(tracker) -> str:
    """How the power of the processor and the GPUs is known; that of memory is a model of codecarbon's."""
    gpus = tracker.get_detected_hardware().get("gpu_count") or 0
    cpu = "estimated from the processor's load and thermal design power, as there is no RAPL meter to read"
    if any(getattr(part, "_mode", None) == "intel_rapl" for part in tracker._hardware):
        cpu = "measured by RAPL"
    return f"{cpu}; {gpus} GPUs measured by NVML" if gpus else cpu


def emissions(
    kwh: float | None, watts: float | None, country: str | None, grams_per_kwh: float | None, source: str
) -> dict:
    """The part of a report on energy."""
    return {
        "energy_kwh": kwh,
        "watts": watts,
        "co2e_kg": None if kwh is None or grams_per_kwh is None else kwh * grams_per_kwh / 1000,
        "country": country,
        "grams_co2e_per_kwh": grams_per_kwh,
        "energy_source": source,
    }


def table_memory(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, int]]:
    """Parameters and bytes in training of the vocabulary's tables, and of the dense ones that they stand for.

    Bytes of weights, of gradients, and of what the optimiser keeps; over all processes where they are sharded.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [p for module in (embedding, head) if module is not None for p in module.parameters() if p.dim() == 2]
    parameters = list({id(p): p for p in found}.values())
    states = getattr(optimizer, "optimizer", optimizer).state
    kept = [state for p in parameters for state in states.get(p, {}).values() if torch.is_tensor(state) and state.dim()]
    tables = sum(p.shape[0] == embedding.num_embeddings for p in parameters)
    dense = tables * embedding.num_embeddings * embedding.embedding_dim
    size = parameters[0].element_size()
    return {
        "table": {
            "parameters": sum(p.numel() for p in parameters),
            "weights": sum(p.nbytes for p in parameters),
            "gradients": sum(p.nbytes for p in parameters if p.requires_grad),
            "optimizer": sum(state.nbytes for state in kept),
        },
        # Trained as a whole by AdamW, which keeps two values a parameter.
        "dense_table": {
            "parameters": dense,
            "weights": size * dense,
            "gradients": size * dense,
            "optimizer": 2 * size * dense,
        },
    }


def summary(report: dict) -> list[str]:
    """Energy and memory of a run, or of a predicted one, in lines for people."""
    cost, memory = report["cost"], report["memory"]
    if cost["energy_kwh"] is None:
        power = cost["energy_source"]
    else:
        emitted = "CO2e with --country"
        if cost["co2e_kg"] is not None:
            emitted = f"{cost['co2e_kg']:.3g} kg CO2e ({cost['country']}, {cost['grams_co2e_per_kwh']:.0f} g/kWh)"
        power = f"{cost['energy_kwh']:.3g} kWh, {emitted}; {cost['energy_source']}"
    ours, dense = (
        f"{part['parameters'] / 1e6:,.1f} M parameters, "
        f"{(part['weights'] + part['gradients'] + part['optimizer']) / 2**20:,.0f} MiB with gradients and optimiser"
        for part in (memory["table"], memory["dense_table"])
    )
    return [f"energy  {power}", f"table   {ours}" + ("" if ours == dense else f"; dense: {dense}")]
