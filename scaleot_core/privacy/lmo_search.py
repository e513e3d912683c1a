"""The offline search of LMO-DP: the mixture of least noise for a budget, among many.

The paper (Yang et al. 2024) searches a grid of mixtures for the greatest epsilon below a target, by its own accountant.
Here every mixture is *scaled* until it just keeps the budget, by the accountant of everything else, and the one of
least standard deviation wins. It can only come near plain Laplace noise, the mixture that does not mix: the search
shows by how little.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Final

from scaleot_core.errors import InputError
from scaleot_core.privacy.calibration import NoiseBudget, calibrate
from scaleot_core.privacy.lmo import Lmo
from scaleot_core.progress import Reporter, SilentReporter

FINALISTS: Final = 4
_WEIGHTS: Final = tuple(tenth / 10 for tenth in range(1, 10))
_GAMMAS: Final = ((1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (5.0, 1.0), (9.0, 0.5), (7.5, 1.0), (0.5, 1.0))
"""The paper's pairs of theta and k."""
_RATES: Final = (0.1, 0.5, 1.0, 5.0)
_UNIFORMS: Final = ((0.0, 1.0), (1.0, 2.0))


def paper_shapes() -> Iterator[dict[str, float]]:
    """Yields the 40,824 mixtures of the paper's published search; a quarter of an hour's work for one core."""
    for weights, gamma, rate, uniform in product(product(_WEIGHTS, repeat=3), _GAMMAS, _RATES, _UNIFORMS):
        yield {
            "gamma_weight": weights[0],
            "gamma_shape": gamma[1],
            "gamma_scale": gamma[0],
            "exponential_weight": weights[1],
            "exponential_rate": rate,
            "uniform_weight": weights[2],
            "uniform_low": uniform[0],
            "uniform_high": uniform[1],
        }


def search_lmo(
    budget: NoiseBudget, shapes: Sequence[Mapping[str, float]], *, reporter: Reporter | None = None
) -> dict[str, float]:
    """Returns the mixture of ``shapes`` that keeps a budget with the least noise; ``calibrate`` scales it.

    A shape is the parameters of ``Lmo`` but scale and dimension. All are ranked by the product of Fisher information
    and variance, which no scale changes and which decides where releases are many; it is 2 for Laplace, and more the
    more a mixture mixes. The best few are calibrated.

    Raises:
        InputError: there is no shape, a shape's parameters are out of range, or none keeps the budget.
    """
    if not shapes:
        raise InputError("search for an lmo noise: expected at least one shape, got none")
    ranks = []
    with (reporter or SilentReporter()).stage("lmo search", steps=len(shapes)) as stage:
        for shape in shapes:
            ranks.append(mixing(shape))
            stage.advance()
    ranked = [shapes[index] for index in sorted(range(len(shapes)), key=ranks.__getitem__)]
    stddevs = [calibrate("lmo", budget, lmo_shape=shape).law().stddev() for shape in ranked[:FINALISTS]]
    return dict(ranked[stddevs.index(min(stddevs))])


def mixing(shape: Mapping[str, float]) -> float:
    """Returns the Fisher information times the variance of a shape: 2 or more, whatever its scale."""
    law = Lmo(**shape)
    return law.fisher_information() * law.stddev() ** 2
