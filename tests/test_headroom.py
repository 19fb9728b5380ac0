"""Tolerances that remember: every form of comparison is recorded, passes and fails as with plain numbers."""

import headroom
import numpy as np
import portable
import pytest
import tolerances
import torch
from headroom import Tolerance

TOLERANCE = Tolerance("ours", 1e-3)


@pytest.fixture
def seen(monkeypatch):
    """What the test compares from here on, and nothing of it in the table of the run."""
    records = {}
    monkeypatch.setattr(headroom, "_seen", records)
    return records


def only(seen):
    ((entry, test), found) = seen.popitem()
    assert not seen
    assert test.startswith("tests/test_headroom.py::test_")
    return entry, found


@pytest.mark.parametrize("error", [5e-4, np.float64(5e-4), np.array(5e-4), torch.tensor(5e-4, dtype=torch.float64)])
def test_comparisons_of_any_number_are_recorded(error, seen):
    assert error < 2 * TOLERANCE
    assert only(seen) == ("ours", (0.25, 5e-4, 2e-3))
    assert error <= 1e-3 + TOLERANCE / torch.tensor(1.0)
    assert only(seen)[1].ratio == pytest.approx(0.25)
    assert not error < TOLERANCE * 0.1
    assert error > 0.1 * TOLERANCE  # claims nothing
    assert only(seen)[1].ratio == pytest.approx(5)


@pytest.mark.parametrize(("size", "close"), [(0.5, True), (2, False)])
@pytest.mark.parametrize(
    "compare",
    [
        lambda found: np.testing.assert_allclose(found, np.ones(3), rtol=0, atol=TOLERANCE),
        lambda found: np.testing.assert_allclose(found, np.ones(3), rtol=TOLERANCE),
        lambda found: torch.testing.assert_close(
            torch.from_numpy(found), torch.ones(3).double(), rtol=TOLERANCE, atol=0
        ),
        lambda found: pytest.fail("no") if found[1] != pytest.approx(1, abs=TOLERANCE) else None,
        lambda found: pytest.fail("no") if found[1] != pytest.approx(1, rel=TOLERANCE) else None,
    ],
)
def test_assertions_are_recorded_and_mean_what_they_meant(compare, size, close, seen):
    found = np.array([1, 1 + size * 1e-3, 1])
    if close:
        compare(found)
    else:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            compare(found)
    entry, worst = only(seen)
    assert entry == "ours"
    np.testing.assert_array_almost_equal_nulp(worst.ratio, np.float64(found[1] - 1) / 1e-3)


def test_the_worst_of_a_test_is_kept(seen):
    for error in (1e-5, 5e-4, 1e-4):
        assert error < TOLERANCE
    assert only(seen)[1].observed == 5e-4


def test_a_comparison_without_a_name_is_recorded_too(seen):
    np.testing.assert_allclose(1.0, 1.0 + 1e-9, rtol=1e-8)
    assert only(seen)[0] == "(unnamed)"


def test_round_off_within_the_factor_ten_is_marked(monkeypatch):
    monkeypatch.setattr(headroom, "_exempt", {"grid"})
    seen = {
        ("grid", "a"): headroom.Seen(0.5, 0.5, 1.0),
        ("near", "a"): headroom.Seen(0.05, 0.05, 1.0),
        ("near", "b"): headroom.Seen(0.2, 0.2, 1.0),
        ("far", "b"): headroom.Seen(0.09, 0.09, 1.0),
    }
    table = headroom.rows(seen)
    assert [(row.entry, row.tests, row.test, row.short) for row in table] == [
        ("grid", 1, "a", False),
        ("near", 2, "b", True),
        ("far", 1, "b", False),
    ]
    assert [line[0] for line in headroom.lines(table)[1:]] == ["~", "!", " "]


def test_the_table_of_tolerances_is_watched():
    assert isinstance(tolerances.EXACT, Tolerance)
    assert tolerances.DIFFUSION["mass"].name == "DIFFUSION mass"
    with pytest.raises(ValueError, match="no tolerance has the name nothing"):
        headroom.watched({"EXACT": 1e-12}, exempt=["nothing"])


def test_what_is_written_is_read_again(tmp_path, seen):
    assert TOLERANCE > 1e-4
    headroom.save(tmp_path / "file")
    assert headroom.load(tmp_path / "file") == seen


def test_the_machines_are_told_apart_and_their_tests_exist():
    for machines in portable.MACHINES.values():
        orders = [tuple(sorted(machine.environment.items())) for machine in machines]
        assert len(set(orders)) == len(orders) >= 3
    users = {path.name for path in portable.TESTS.glob("test_*.py") if "from tolerances import" in path.read_text()}
    assert sorted(users) == sorted(portable.NUMERICAL + portable.LEFT_OUT + portable.UNTRIED)


def test_the_newest_machine_runs_only_by_name_or_alone():
    oldest, avx, avx2, _ = portable.MACHINES["x86_64"]
    assert portable.chosen([oldest, avx, avx2], None) == [oldest, avx]
    assert portable.chosen([oldest, avx, avx2], ["avx2", "avx512"]) == [avx2]
    assert portable.chosen([oldest], None) == [oldest]
    assert portable.chosen([], None) == []
