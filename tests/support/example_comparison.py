"""Points of a comparison as a bench would return them, with figures made up."""

import itertools
import math
from typing import Any

ALPHA, BETA, TARGET = "emulator.replaced_layer_share", "emulator.removed_rank_share", "emulator.rank_target"

CONFIG = {"seed": 0, "model": {"source": "smollm2-135m"}, "compare": {"seeds": [0, 1, 2]}}
VERSIONS = {"scaleot": "0.1.0", "torch": "2.13.0"}

CHOICE = (0.567, 0.493, 0.783, 0.857, 0.887)
"""Zero-shot, emulator zero-shot, emulator tuned, plug-in, full fine-tuning."""

_MODELS = ("zero_shot", "emulator_zero_shot", "emulator_tuned", "plug_in", "full_fine_tuning")


def choice_figures(accuracy: float) -> dict[str, Any]:
    return {"loss": 1 - accuracy, "examples": 300, "accuracy": accuracy, "accuracy_norm": accuracy - 0.01}


def text_figures(perplexity: float) -> dict[str, Any]:
    return {"loss": math.log(perplexity), "examples": 50, "perplexity": perplexity}


def answer_figures(f1: float) -> dict[str, Any]:
    return {"loss": 1 - f1, "examples": 300, "accuracy": 0.0, "f1": f1}


def example_point(
    builder: str = "scaleot",
    *,
    task: str = "sst2",
    seed: int = 0,
    figures: tuple[float, ...] = CHOICE,
    figures_of: Any = choice_figures,
    emulator: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    failed: str | None = None,
    attacks: dict[str, Any] | None = None,
    budget: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns one point; a failed one has no tuned models, one of an older version no attacks, many no privacy."""
    results = dict(zip(_MODELS, map(figures_of, figures), strict=False))
    if failed is not None:
        del results["emulator_tuned"], results["plug_in"]
    return {
        "labels": {"task": task, "builder": builder, **(settings or {})},
        "seed": seed,
        "results": results,
        **({} if attacks is None else {"attacks": attacks}),
        **({} if budget is None else {"budgets": [budget]}),
        "emulator": {
            "parameters": 101_234_567,
            "size_bytes": 202_469_134,
            "size_share": 0.752,
            "verbatim_share": 0.688,
            "trained_share": 0.012,
            "layers": [{"index": 0, "role": "adapter", "kept_rank_share": 1.0}],
            "importance": [0.9, -0.2, 0.1, 0.4] if builder == "scaleot" else None,
            "importance_seconds": 120.5 if builder == "scaleot" else 0.0,
            "build_seconds": 2.0,
            **(emulator or {}),
        },
        "rounds": [{"round": 1, "train_loss": 0.4, "validation_loss": None}],
        "chosen_round": 1,
        "tuning_seconds": 30.0,
        "failed": failed,
    }


def grid_points(
    task: str, builders: tuple[str, ...], settings: dict[str, list[Any]], figures_of: Any = choice_figures
) -> list[dict[str, Any]]:
    """Returns three seeds of every builder and setting; the more is lost, the worse and the less verbatim."""
    points = []
    for position, builder in enumerate(builders):
        for values in itertools.product(*settings.values()):
            own = dict(zip(settings, values, strict=True))
            lost = own.get(ALPHA, 0.0) + own.get(BETA, 0.0) ** 3
            for seed in range(3):
                noise = 0.004 * (seed - 1) * (position + 1)
                shown = (0.567, 0.55 - 0.2 * lost, 0.8 - 0.15 * lost - noise, 0.87 - 0.03 * lost + noise, 0.887)
                if figures_of is text_figures:
                    shown = tuple(12 * math.exp(9 * (0.9 - value)) for value in shown)
                emulator = {"verbatim_share": 0.85 - 0.3 * lost - 0.02 * position, "build_seconds": 0.5 * 9**position}
                points.append(
                    example_point(
                        builder,
                        task=task,
                        seed=seed,
                        figures=shown,
                        figures_of=figures_of,
                        emulator=emulator,
                        settings=own,
                    )
                )
    return points
