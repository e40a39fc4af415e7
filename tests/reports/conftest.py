from __future__ import annotations

import copy

import pytest

HOSTILE = "<script>alert(1)</script>[/x]\x1b[31m\u202e$x$"


QUALITY = {
    "images": 200,
    "blank": 1,
    "label_agreement": 0.9,
    "leakage": {
        "images": 200, "near_train": 2, "near_test": 3, "real_overlap": 4, "closer_than_real": 0.1,
        "closer_expected": 0.01, "level": "error",
    },
    "fidelity": [
        {
            "features": "judge", "images": "generated", "frechet": 7.741, "kid": 12.5, "precision": 0.8, "recall": 0.7,
            "density": 0.9, "coverage": None, "generated": 200, "reference": 997,
        }
    ],
}  # fmt: skip
STAGE = {"device": "cpu", "devices": 1, "unit": "CPU-hours", "peak_memory_mib": 900, "energy_wh": None}
COST = {
    "stages": [
        {
            **STAGE, "stage": "finetune", "seconds": 720.0, "hours": 0.2, "load_seconds": 3.0, "warmup_seconds": None,
            "build_seconds": None,
        }
    ],
    "hours": {"GPU-hours": 0.0, "CPU-hours": 0.2},
    "energy_wh": None,
    "gpu_hour_price": None,
    "money": None,
    "images": 200,
    "per_image": {"GPU-hours": 0.0, "CPU-hours": 0.001, "money": None},
    "points_gained": 0.9,
    "per_point": {"GPU-hours": 0.0, "CPU-hours": 0.2222, "money": None},
}  # fmt: skip


@pytest.fixture
def metrics() -> dict:
    """A small metrics.json with every kind of gap: a null agreement, a null interval, a hostile arm name."""
    arm = {"synthetic_images": 400, "accuracy": [0.96, 0.97], "accuracy_mean": 0.965, "accuracy_ci95": [0.955, 0.975]}
    pair = {"against": "real", "difference_mean": 0.009, "difference_ci95": [0.003, 0.015], "seeds": 8}
    pair |= {"p_value": 0.0078, "verdict": "better", "seeds_needed": 6}
    bins = [(1.0, 40, 1.0, 80), (0.99, 9, 0.95, 70), (None, 0, 0.6, 12)]
    return {
        "schema": 1,
        "seconds": {"score": 25.5, "finetune": 754.2, "generate": 210.0},
        "device": "cpu",
        "adherence": {
            "n": 700,
            "spearman": 0.812,
            "mean_absolute_error": 0.031,
            "reachable": [0.05, 0.72],
            "labels_hold_until": {"real": 0.2, "generated": 0.2},
            "classes": [
                {"class": HOSTILE, "n": 40, "spearman": 0.1, "error": -0.05, "label_agreement": 0.9},
                {"class": "8", "n": 40, "spearman": None, "error": 0.05, "label_agreement": 1.0},
            ],
            "targets": [
                {"target": 0.1, "realised_mean": 0.12, "label_agreement": 0.99, "n": 100},
                {"target": 0.5, "realised_mean": None, "label_agreement": None, "n": 0},
            ],
            "frontier": [
                {
                    "bin": [i / 10, (i + 1) / 10],
                    "real_agreement": r,
                    "real_n": rn,
                    "generated_agreement": g,
                    "generated_n": gn,
                }
                for i, (r, rn, g, gn) in enumerate(bins)
            ],
        },
        "downstream": {
            "classifier": "resnet10t",
            "test_images": 997,
            "real_images": 200,
            "seeds": 2,
            "arms": [
                arm | {"name": "real", "synthetic_images": 0},
                arm | {"name": HOSTILE},
                {**arm, "name": "hard", "accuracy": [0.92], "accuracy_mean": 0.92, "accuracy_ci95": None},
            ],
            "paired": [
                pair | {"arm": "dcdm"},
                {
                    **pair,
                    "arm": "hard",
                    "difference_mean": -0.03,
                    "difference_ci95": None,
                    "seeds": 1,
                    "p_value": None,
                    "verdict": "cannot tell",
                    "seeds_needed": None,
                },
            ],
        },
        "quality": copy.deepcopy(QUALITY),
        "cost": copy.deepcopy(COST),
        "warnings": [f"class {HOSTILE} has few images"],
    }
