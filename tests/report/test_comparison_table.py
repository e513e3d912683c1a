import io

from rich.console import Console

from scaleot_core.report.comparison import summarize
from scaleot_core.report.comparison_table import print_comparison
from tests.support.example_comparison import (
    ALPHA,
    BETA,
    CONFIG,
    VERSIONS,
    example_point,
    grid_points,
    text_figures,
)

ADAPTER_LAYERS = "emulator.num_adapter_layers"


def printed(points: list[dict], *, width: int = 100, styled: bool = False) -> str:  # type: ignore[type-arg]
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=styled, color_system="standard" if styled else None)
    print_comparison(summarize(points, CONFIG, VERSIONS), console)
    return stream.getvalue()


def test_a_block_has_the_floors_and_a_row_for_each_builder_and_setting() -> None:
    points = grid_points("sst2", ("scaleot", "uniform"), {ALPHA: [0.0, 0.5]})
    lines = [line.split() for line in printed(points).splitlines()]
    assert ["zero-shot", "56.7"] in lines and ["full", "fine-tuning", "88.7", "±", "0.0"] in lines
    assert ["scaleot", "0.5", "45.0", "72.5±0.4", "85.5±0.4", "+13.0±0.8", "70.0", "%", "121.0"] in lines
    assert ["uniform", "0", "55.0", "80.0±0.8", "87.0±0.8", "+7.0±1.6", "83.0", "%", "4.5"] in lines


def test_the_machine_and_its_days_are_named() -> None:
    points = [
        {**example_point(seed=seed), "origins": [{"machine": "A, 1 thread", "date": "2026-11-27"}]} for seed in (0, 1)
    ]
    assert printed(points).count("Computed on A, 1 thread: 2026-11-27.") == 1


def test_every_task_has_its_own_block_in_its_own_measure() -> None:
    points = grid_points("sst2", ("scaleot",), {}) + grid_points("wikitext", ("scaleot",), {}, text_figures)
    text = printed(points)
    assert "sst2: accuracy, %, on 300 held-out examples; ± one standard deviation over 3 seeds" in text
    assert "wikitext: perplexity (less is better), on 50 held-out examples" in text


def test_all_three_settings_and_six_builders_fit_a_hundred_columns() -> None:
    builders = ("scaleot", "uniform", "distilled", "importance_drop", "crash", "gradot")
    lines = printed(grid_points("t", builders, {ADAPTER_LAYERS: [4], ALPHA: [0.25], BETA: [0.6]})).splitlines()
    [header] = [line.split() for line in lines if line.strip().startswith("builder")]
    assert header[:4] == ["builder", "N_a", "alpha", "beta"]
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert all(sum(line.split()[:1] == [builder] for line in lines) == 1 for builder in builders)


def test_the_best_plug_in_alone_is_bold_and_named_below() -> None:
    points = [
        example_point("scaleot", figures=(0.5, 0.4, 0.6, 0.7)),
        example_point("uniform", figures=(0.5, 0.4, 0.6, 0.8)),
    ]
    text = printed(points, styled=True)
    assert "\x1b[1m80.0\x1b[0m" in text and "\x1b[1m70.0" not in text
    assert "the best plug-in is 80.0 (uniform), delta +20.0, verbatim share 68.8 %" in printed(points)


def test_failures_are_said_with_their_reason_and_unknown_costs_are_said_to_be_unknown() -> None:
    points = [
        example_point(seed=0, emulator={"importance_seconds": None}),
        example_point(seed=1, failed="training diverged at every client in round 2"),
        example_point("uniform", seed=0, failed="x"),
        example_point("uniform", seed=1, failed="x"),
    ]
    text = printed(points)
    assert "scaleot: 1 of 2 runs failed: training diverged at every client in round 2" in text
    assert "uniform: 2 of 2 runs failed: x" in text
    [uniform] = [line.split() for line in text.splitlines() if line.startswith(" uniform")]
    assert uniform == ["uniform", "49.3", "failed", "failed", "68.8", "%", "2.0"] and "unknown" in text
    assert "in every row a run failed: there is no best plug-in" in text


def test_a_name_with_markup_is_printed_as_it_stands() -> None:
    text = printed([example_point(task="[red]t[/red]", settings={"variant": "[b]v[/b]"})])
    assert "[red]t[/red]" in text and "[b]v[/b]" in text
