import pytest
import torch

import fastnmf
from fastnmf import ConvergenceWarning, InvalidInput
from fastnmf.selection.models import Fits, bar, warn_of_limits


def test_fits_say_what_the_summary_says():
    A = torch.rand(40, 10, generator=torch.Generator().manual_seed(0))
    fits = Fits.of(fastnmf.NMF, {"max_iter": 2})
    model, run = fits.fit(A, 3, 0)
    info = model.fit_info_
    assert torch.equal(run.D, model.D)
    assert run.numbers["relative_error"] == info.relative_error
    assert run.numbers["converged"] == 0
    with pytest.warns(ConvergenceWarning, match="1 of 1 fits .* max_iter=2 "):
        warn_of_limits([run], 2)


@pytest.mark.parametrize("option", ["seed", "nb_concepts", "distributed"])
def test_options_of_the_call_are_no_options_of_the_model(option):
    with pytest.raises(InvalidInput, match=f"{option}=1 is no option here"):
        Fits.of(fastnmf.NMF, {option: 1})


def test_bar_counts_fits(capsys):
    with bar(True, 2, "choose") as done:
        done()
        done()
    assert "2/2" in capsys.readouterr().err
