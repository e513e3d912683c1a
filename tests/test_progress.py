import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scaleot_core import progress
from scaleot_core.progress import (
    LogReporter,
    Reporter,
    SilentReporter,
    Stage,
    advance_found,
    terminal_or_log_reporter,
)
from scaleot_core.progress_bars import BarReporter


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def terminal(width: int = 120, clock: Callable[[], float] = time.monotonic) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, color_system=None, get_time=clock), stream


def last_frame(stream: io.StringIO) -> str:
    return stream.getvalue().rsplit("\x1b[2K", maxsplit=1)[-1]


@pytest.mark.parametrize("reporter", [SilentReporter(), LogReporter(), BarReporter(terminal()[0])])
def test_every_reporter_reports_stages_inside_stages(reporter: Reporter) -> None:
    assert isinstance(reporter, Reporter)
    with reporter.stage("rounds", steps=2) as outer:
        assert isinstance(outer, Stage)
        for _ in range(2):
            with reporter.stage("train", steps=3) as inner:
                inner.advance(2, loss=0.5)
                advance_found(inner)
            outer.advance()
        reporter.note("a line")


def test_a_log_has_a_line_for_a_finished_stage_with_its_last_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with LogReporter().stage("importance", steps=3) as stage:
        stage.advance(loss=2.0)
        stage.advance(2, loss=1.25)
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("importance: 3/3  loss 1.2500  done in ")


def test_a_log_says_now_and_then_how_much_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    with LogReporter().stage("train", steps=4) as stage:
        stage.advance(0)
        stage.advance(loss=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 0/4") and lines[1].startswith("train: 1/4  loss 0.5000  ")
    assert lines[1].endswith(" s left")


def test_a_log_does_not_time_the_steps_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    clock, stream = Clock(), io.StringIO()
    with LogReporter(stream, clock).stage("points", steps=10) as stage:
        clock.seconds += 1
        advance_found(stage, 5)
        clock.seconds += 60
        stage.advance()
        clock.seconds += 2
        advance_found(stage)
        clock.seconds += 80
        stage.advance()
    assert stream.getvalue().splitlines() == [
        "points: 5/10",
        "points: 6/10  240 s left",
        "points: 7/10  180 s left",
        "points: 8/10  140 s left",
        "points: 8/10  done in 143.0 s",
    ]


def test_a_stage_that_tells_no_time_left_counts_what_was_found_like_any_step() -> None:
    class CountingStage:
        done = 0

        def advance(self, steps: int = 1, *, loss: float | None = None) -> None:
            self.done += steps

    stage = CountingStage()
    advance_found(stage, 3)
    assert stage.done == 3


def test_a_log_does_not_say_done_of_a_stage_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), LogReporter().stage("train", steps=4):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_a_bar_names_stage_step_and_loss() -> None:
    console, stream = terminal()
    with BarReporter(console).stage("importance [1]", steps=300) as stage:
        stage.advance(7, loss=2.5)
    shown = stream.getvalue()
    assert "importance [1]" in shown and "7/300" in shown and "loss 2.5000" in shown and "left" in shown


def test_a_bar_says_how_much_is_left_of_steps_that_take_long() -> None:
    clock = Clock()
    console, stream = terminal(clock=clock)
    with BarReporter(console).stage("points", steps=7) as stage:
        for _ in range(3):
            clock.seconds += 1000
            stage.advance()
    assert "3/7" in last_frame(stream) and "left 1:06:40" in last_frame(stream)


@pytest.mark.parametrize(("computed", "shown"), [(0, "left -:--:--"), (1, "left 0:01:20")])
def test_a_bar_does_not_time_the_steps_that_were_found(computed: int, shown: str) -> None:
    clock = Clock()
    console, stream = terminal(clock=clock)
    with BarReporter(console).stage("points", steps=10) as stage:
        for _ in range(5):
            clock.seconds += 0.1
            advance_found(stage)
        for _ in range(computed):
            clock.seconds += 20
            stage.advance()
    assert f"{5 + computed}/10" in last_frame(stream) and shown in last_frame(stream)


def test_the_bar_of_an_inner_stage_goes_when_it_ends_and_the_outer_one_stays() -> None:
    console, stream = terminal()
    reporter = BarReporter(console)
    with reporter.stage("rounds", steps=1) as outer:
        with reporter.stage("clinic", steps=1) as inner:
            inner.advance()
        outer.advance()
    assert "rounds" in last_frame(stream) and "clinic" not in last_frame(stream)


def test_stages_of_several_threads_share_the_terminal() -> None:
    reporter = BarReporter(terminal()[0])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with reporter.stage("train", steps=2) as stage:
                    stage.advance(2)
        except BaseException as failure:
            failures.append(failure)
            raise

    with reporter.stage("rounds", steps=1):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_note_is_shown_as_it_is() -> None:
    console, stream = terminal()
    BarReporter(console).note("[red]clinic-1[/red] /tmp/x")
    assert stream.getvalue() == "[red]clinic-1[/red] /tmp/x\n"


def test_where_standard_error_is_no_terminal_lines_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        terminal_or_log_reporter().note("a line")
    assert (tmp_path / "log").read_text() == "a line\n"
