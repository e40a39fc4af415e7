from __future__ import annotations

import pytest

HOSTILE = "<script>alert(1)</script>[/x]\x1b[31m\u202e$x$"


@pytest.fixture
def metrics() -> dict:
    """A small metrics.json with every kind of gap: a null agreement, a null interval, a hostile arm name."""
    arm = {"synthetic_images": 400, "accuracy": [0.96, 0.97], "accuracy_mean": 0.965, "accuracy_ci95": [0.955, 0.975]}
    pair = {"against": "real", "difference_mean": 0.009, "difference_ci95": [0.003, 0.015], "seeds": 8}
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
                {**pair, "arm": "hard", "difference_mean": -0.03, "difference_ci95": None, "seeds": 1},
            ],
        },
    }
