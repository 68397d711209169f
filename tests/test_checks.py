"""Each check says which argument is wrong, what came and what was expected."""

import pytest
import torch

from flowlib import _checks

pytestmark = pytest.mark.bad_input


def test_states() -> None:
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        _checks.check_state("x", [1.0])
    with pytest.raises(TypeError, match=r"floating-point dtype, got torch\.int64"):
        _checks.check_state("x", torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x must have shape \[batch, \*event\], got \[3\]"):
        _checks.check_state("x", torch.zeros(3))
    with pytest.raises(ValueError, match="x is empty"):
        _checks.check_state("x", torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 2\], got \[3, 4\]"):
        _checks.check_state("x", torch.zeros(3, 4), dim=2)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="NaN or infinite entries in 1 of 3 samples"):
            _checks.check_state("x", torch.tensor([[0.0], [bad], [1.0]]))


def test_large_finite_states_are_accepted_though_their_sum_overflows() -> None:
    _checks.check_state("x", torch.full((4, 2), 3e38))


def test_infinities_of_both_signs_do_not_cancel() -> None:
    with pytest.raises(ValueError, match="in 2 of 2 samples"):
        _checks.check_state("x", torch.tensor([[torch.inf], [-torch.inf]]))


def test_agreement() -> None:
    a = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"got \[3, 2\] and \[1, 2\]"):
        _checks.check_same("a", a, "b", torch.zeros(1, 2))
    _checks.check_same("a", a, "b", torch.zeros(1, 2), shape=False)
    with pytest.raises(ValueError, match="same event shape"):
        _checks.check_same("a", a, "b", torch.zeros(3, 1), shape=False)
    with pytest.raises(TypeError, match="same dtype"):
        _checks.check_same("a", a, "b", a.double())
    with pytest.raises(ValueError, match="one device"):
        _checks.check_same("a", a, "b", a.to("meta"))


def test_numbers_and_names() -> None:
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        _checks.check_positive("n", 0)
    with pytest.raises(ValueError, match="n must be positive, got nan"):
        _checks.check_positive("n", float("nan"))
    for wrong in (1.5, True):
        with pytest.raises(TypeError, match="n must be an int"):
            _checks.check_positive("n", wrong, integer=True)
    with pytest.raises(ValueError, match="c must be one of 'a', 'b'; got 'z'"):
        _checks.check_choice("c", "z", ("a", "b"))


def test_times() -> None:
    x = torch.zeros(3, 2)
    assert _checks.batch_time(1, x).dtype == x.dtype
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            _checks.batch_time(bad, x)
    with pytest.raises(TypeError, match="t must have the dtype of the states"):
        _checks.batch_time(torch.zeros(3).double(), x)
    with pytest.raises(ValueError, match="t must be on the states' device"):
        _checks.batch_time(torch.zeros(3, device="meta"), x)
    with pytest.raises(ValueError, match=r"of shape \[3\].*got shape \[3, 1\]"):
        _checks.batch_time(torch.zeros(3, 1), x)
    with pytest.raises(ValueError, match="times is empty"):
        _checks.check_unit_interval("times", torch.zeros(0))
    assert _checks.expand_time(torch.zeros(3), torch.zeros(3, 1, 4)).shape == (3, 1, 1)
