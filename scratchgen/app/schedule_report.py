"""What a noise schedule does to the data: `info --schedule`."""

import warnings
from collections.abc import Callable

import numpy as np

from scratchgen.app.recipes import Recipe
from scratchgen.app.recipes.ddpm import SCHEDULES, DdpmRecipe
from scratchgen.app.recipes.vdm import VdmRecipe
from scratchgen.maths.diffusion_bound import epsilon_weight
from scratchgen.maths.schedules import SIGNAL_LIMIT, Schedule, SignalLeft

MOMENTS = 11  # of a schedule in continuous time


def named_schedule(name: str, steps: int) -> dict:
    """The report of a schedule of that name.

    Raises:
        ValueError: there is no such schedule, or no step.
    """
    if name not in SCHEDULES:
        known = " or ".join(SCHEDULES)
        raise ValueError(f"--schedule must be {known}, or follow a RUN; got {name!r}")
    return {"schedule": name, **_of_steps(SCHEDULES[name](steps), second_moment=1.0)}


def schedule_of(recipe: Recipe) -> dict:
    """The report of a run's schedule, with the second moment of its data.

    Raises:
        ValueError: the run is no diffusion.
    """
    x = recipe.fitted.x
    second_moment = float(np.mean(x * x))
    if isinstance(recipe, DdpmRecipe):
        name, schedule = recipe.config.schedule, recipe.model.schedule
        return {"schedule": name, **_of_steps(schedule, second_moment)}
    if isinstance(recipe, VdmRecipe):
        found = _of_gamma(recipe.gamma_on_host, second_moment)
        steps = recipe.config.timesteps or found["steps"]
        return {"schedule": recipe.config.gamma, **found, "steps": steps}
    raise ValueError(f"a {recipe.name} has no noise schedule; name a ddpm or a vdm run")


def _of_steps(schedule: Schedule, second_moment: float) -> dict:
    """Where the chain ends, and a few of its steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        end = schedule.report(second_moment)
    last = schedule.steps
    chosen = sorted({min(t, last) for t in (1, 2, 10, 100, (last + 1) // 2, last)})
    now, before = schedule.log_alpha_bar[chosen], schedule.log_alpha_bar[np.asarray(chosen) - 1]
    weight = epsilon_weight(schedule.beta[chosen], now, before)
    rows = [
        {
            "t": t,
            "beta": float(schedule.beta[t]),
            "beta_tilde": float(schedule.posterior_variance[t]),
            "alpha_bar": float(schedule.alpha_bar[t]),
            "gamma": float(schedule.gamma[t]),
            "lambda": float(weight[i]),  # with σ² = β
        }
        for i, t in enumerate(chosen)
    ]
    left = [str(w.message) for w in caught if issubclass(w.category, SignalLeft)]
    return {
        "steps": last,
        "second_moment_of_data": second_moment,
        "alpha_bar_last": end.alpha_bar,
        "snr_last": end.snr,
        "prior_kl_nats_per_dim": end.prior_kl,
        "warnings": left,
        "rows": rows,
    }


def _of_gamma(gamma: Callable, second_moment: float) -> dict:
    """γ(t) at equal distances of t, and where it ends."""
    t = np.linspace(0.0, 1.0, MOMENTS)
    values, slopes = gamma(t)
    alpha_bar = 1.0 / (1.0 + np.exp(values))
    last = alpha_bar[-1]
    kl = 0.5 * (last * second_moment - last - np.log1p(-last))
    names = ("t", "gamma", "gamma_slope", "alpha_bar")
    rows = [
        dict(zip(names, map(float, row), strict=True))
        for row in zip(t, values, slopes, alpha_bar, strict=True)
    ]
    return {
        "steps": "continuous",
        "second_moment_of_data": second_moment,
        "alpha_bar_last": float(last),
        "snr_last": float(np.exp(-values[-1])),
        "prior_kl_nats_per_dim": float(kl),
        "warnings": []
        if kl < SIGNAL_LIMIT
        else [f"{kl:.2g} nats per dimension of the data are left"],
        "rows": rows,
    }


def print_schedule(report: dict) -> None:
    """The same for people."""
    many = "continuous time" if report["steps"] == "continuous" else f"{report['steps']} steps"
    print(f"{report['schedule']}, {many}")
    print(f"at the end ᾱ = {report['alpha_bar_last']:.3g}, SNR = {report['snr_last']:.3g}")
    moment = report["second_moment_of_data"]
    print(f"KL(q(x_T | x₀) ‖ N(0, I)) = {report['prior_kl_nats_per_dim']:.3g} nats per dimension")
    print(f"(averaged over data with E x₀² = {moment:.3g} per dimension)")
    names = list(report["rows"][0])
    print("".join(f"{name:>13}" for name in names))
    for row in report["rows"]:
        cells = (f"{v:13d}" if isinstance(v, int) else f"{v:13.5g}" for v in row.values())
        print("".join(cells))
    for warning in report["warnings"]:
        print(f"warning: {warning}")
