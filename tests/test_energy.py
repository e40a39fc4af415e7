"""Energy counters: real ones where there is a GPU, and arithmetic on made-up readings."""

from __future__ import annotations

import pytest

from dcdm_cli.run import energy
from dcdm_cli.run.energy import energy_since, read_energy


def test_unknown_is_unknown_and_not_nothing() -> None:
    assert energy_since(None) is None
    assert energy_since({0: 5}, lambda: None) is None
    assert energy_since({0: 5, 1: 5}, lambda: {0: 9}) is None


def test_millijoules_of_all_gpus_become_watt_hours() -> None:
    assert energy_since({0: 0, 1: 1000}, lambda: {0: 3_600_000, 1: 7_201_000}) == 3.0


def test_a_machine_without_gpu_or_library_has_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_energy()
    assert found is None or all(value > 0 for value in found.values())
    monkeypatch.setattr(energy, "_nvml", lambda: None)
    assert read_energy() is None


def test_only_gpus_in_sight_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert energy._visible(4) == [2, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert energy._visible(2) == [0, 1]
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert energy._visible(2) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert energy._visible(2) == [0, 1]
