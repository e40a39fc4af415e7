"""What every room does to arrays."""

from dcdm_cli.arrays import evenly, rounded


def test_rows_are_taken_evenly() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4] and evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert len(evenly(100_001, 50_000)) == 50_000 and evenly(0, 5).tolist() == [] and evenly(9, 1).tolist() == [0]


def test_results_show_numbers_rounded() -> None:
    assert rounded(1 / 3) == 0.3333 and rounded(1 / 3, 2) == 0.33
