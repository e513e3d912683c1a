from itertools import pairwise
from pathlib import Path

import pytest

from fl_server.comparison.points import DATA_ALONE, emulator_key, expand
from scaleot_core.config import read_run_file
from scaleot_core.errors import RunFileError


def points_of(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    (tmp_path / "grid.toml").write_text(text)
    return expand(read_run_file(tmp_path / "grid.toml", []))


def test_every_combination_is_a_point_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").touch()
    points = points_of(
        tmp_path,
        """
        [compare]
        builders = ["uniform", "scaleot"]
        seeds = [3, 4]
        tasks.first = { train = "a.jsonl", test = "b.jsonl" }
        tasks.second = { train = "b.jsonl", test = "a.jsonl" }
        [compare.vary]
        "emulator.replaced_layer_share" = [0.25, 0.5]
        [compare.variants]
        ours = {}
        paper = { "importance.harmonizer_start" = "identity", "importance.reward" = "raw" }
        """,
    )
    assert len(points) == 2 * 2 * 2 * 2 * 2
    assert len({(point.labels, point.seed) for point in points}) == len(points)
    for point in points:
        labels = dict(point.labels)
        assert point.run.emulator.builder == labels["builder"]
        assert point.run.emulator.replaced_layer_share == labels["emulator.replaced_layer_share"]
        assert point.run.importance.reward == ("raw" if labels["variant"] == "paper" else "normalised")
        assert point.run.data.train == str(tmp_path / ("a.jsonl" if labels["task"] == "first" else "b.jsonl"))
        assert not point.run.compare.tasks and not point.run.compare.vary


def test_points_of_one_emulator_stand_together(tmp_path: Path) -> None:
    points = points_of(
        tmp_path,
        """
        [compare]
        builders = ["uniform", "scaleot"]
        [compare.vary]
        "federation.learning_rate" = [1e-3, 2e-3]
        "emulator.replaced_layer_share" = [0.25, 0.5]
        """,
    )
    keys = [emulator_key(point.run) for point in points]
    changes = sum(before != after for before, after in pairwise(keys))
    assert changes == len(set(keys)) - 1 == 3


def test_without_a_section_the_run_file_s_own_task_is_compared_over_builders_and_seeds() -> None:
    points = expand(read_run_file(None, []))
    assert {dict(point.labels)["task"] for point in points} == {DATA_ALONE}
    assert len(points) == 6 * 3


def test_all_faulty_points_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunFileError) as caught:
        points_of(
            tmp_path,
            """
            [compare.tasks.missing]
            train = "no-such-file.jsonl"
            test = "nor-this.jsonl"
            [compare.vary]
            "emulator.replaced_layer_share" = [0.5, 1.5]
            "emulator.colour" = ["red"]
            """,
        )
    text = str(caught.value)
    assert all(fault in text for fault in ("no-such-file.jsonl", "nor-this.jsonl", "1.5", "emulator.colour"))


def test_another_model_is_another_comparison(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="a comparison is of one model"):
        points_of(tmp_path, '[compare.vary]\n"model.dtype" = ["float32", "bfloat16"]\n')


def test_a_variant_may_name_its_own_builder_and_the_labels_say_so(tmp_path: Path) -> None:
    points = points_of(
        tmp_path,
        """
        [compare]
        builders = ["scaleot"]
        seeds = [0]
        [compare.variants]
        ours = {}
        plain = { "emulator.builder" = "uniform" }
        """,
    )
    assert [dict(point.labels) for point in points] == [
        {"task": DATA_ALONE, "builder": "scaleot", "variant": "ours"},
        {"task": DATA_ALONE, "builder": "uniform", "variant": "plain"},
    ]


def test_builders_left_out_count_a_variant_that_names_its_own_once(tmp_path: Path) -> None:
    points = points_of(
        tmp_path,
        """
        [compare]
        seeds = [0, 1]
        [compare.variants]
        plain = { "emulator.builder" = "uniform" }
        ours = {}
        """,
    )
    labels = [(dict(point.labels)["variant"], dict(point.labels)["builder"], point.seed) for point in points]
    assert len(labels) == len(set(labels)) == 2 + 6 * 2
    assert sorted(label for label in labels if label[0] == "plain") == [
        ("plain", "uniform", 0),
        ("plain", "uniform", 1),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seeds = [0, 0]", "each once"),
        ('builders = ["uniform", "uniform"]', "each once"),
        ('vary = { "emulator.removed_rank_share" = [0.5, 0.5] }', "for emulator.removed_rank_share one or more values"),
        ('vary = { "emulator.removed_rank_share" = [] }', "for emulator.removed_rank_share one or more values"),
        ("vary = { seed = [1, 2] }", 'no "seed"'),
        ('variants = { a = { "compare.seeds" = [1] } }', 'no "compare.seeds"'),
    ],
)
def test_what_would_count_a_run_twice_or_not_at_all_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(RunFileError, match=fault):
        points_of(tmp_path, f"[compare]\n{text}\n")


def test_a_path_that_varies_starts_at_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "elsewhere" / "mine.jsonl").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    varied = points_of(
        tmp_path, '[compare]\nbuilders = ["uniform"]\nvary = { "data.train" = ["mine.jsonl", "sst2-train"] }'
    )
    variant = points_of(tmp_path, '[compare]\nvariants = { a = { "data.train" = "mine.jsonl" } }')
    assert {point.run.data.train for point in varied} == {str(tmp_path / "mine.jsonl"), "sst2-train"}
    assert {point.run.data.train for point in variant} == {str(tmp_path / "mine.jsonl")}


def test_a_comparison_attacks_its_emulators_only_if_it_says_so(tmp_path: Path) -> None:
    grid = "[compare]\nbuilders = ['uniform']\nseeds = [0]\n"
    asked = "[model_privacy]\nhealing_steps = [0, 7]\n" + grid
    [plain], [attacked] = points_of(tmp_path, grid), points_of(tmp_path, asked + "attacks = true\n")
    [declined] = points_of(tmp_path, asked + "attacks = false\n")
    for point in (plain, declined):
        assert (point.run.model_privacy.strong_emulator_steps, point.run.model_privacy.healing_steps) == (0, [])
    assert (attacked.run.model_privacy.strong_emulator_steps, attacked.run.model_privacy.healing_steps) == (120, [0, 7])
    key = "'model_privacy.healing_steps'"
    for in_vain in (asked, f"{grid}vary.{key} = [[], [1]]", f"{grid}variants.a = {{ {key} = [] }}"):
        with pytest.raises(RunFileError, match=r"model_privacy\.healing_steps: .* only with compare\.attacks = true"):
            points_of(tmp_path, in_vain)
