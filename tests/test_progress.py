import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from scaleot_core import progress
from scaleot_core.progress import LogReporter, Reporter, SilentReporter, Stage, terminal_or_log_reporter
from scaleot_core.progress_bars import BarReporter


def terminal(width: int = 120) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width, color_system=None), stream


@pytest.mark.parametrize("reporter", [SilentReporter(), LogReporter(), BarReporter(terminal()[0])])
def test_every_reporter_reports_stages_inside_stages(reporter: Reporter) -> None:
    assert isinstance(reporter, Reporter)
    with reporter.stage("rounds", steps=2) as outer:
        assert isinstance(outer, Stage)
        for _ in range(2):
            with reporter.stage("train", steps=3) as inner:
                inner.advance(3, loss=0.5)
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


def test_the_bar_of_an_inner_stage_goes_when_it_ends_and_the_outer_one_stays() -> None:
    console, stream = terminal()
    reporter = BarReporter(console)
    with reporter.stage("rounds", steps=1) as outer:
        with reporter.stage("clinic", steps=1) as inner:
            inner.advance()
        outer.advance()
    last_frame = stream.getvalue().rsplit("\x1b[2K", maxsplit=1)[-1]
    assert "rounds" in last_frame and "clinic" not in last_frame


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
