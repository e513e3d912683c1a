"""SIGTERM during callbacks of libraries in C, which drop an exception or make another of it."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from pydantic import BaseModel, field_serializer

from scaleot_core.termination import EXIT_CODE, ended_by_sigterm


class _Serialized(BaseModel):
    value: int

    @field_serializer("value")
    def _terminate(self, value: int) -> int:
        terminate()
        return value


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_serializer() -> None:
    _Serialized(value=1).model_dump()


def in_a_function_of_sqlite() -> None:
    connection = sqlite3.connect(":memory:")
    connection.create_function("terminate", 0, terminate)
    connection.execute("select terminate()")


def in_a_library_that_goes_on() -> None:
    with suppress(BaseException):
        terminate()
    time.sleep(60)


@pytest.mark.parametrize("work", [terminate, in_a_serializer, in_a_function_of_sqlite, in_a_library_that_goes_on])
def test_what_it_hits_ends_with_its_exit_code_within_a_second(work: Callable[[], None]) -> None:
    begin = time.monotonic()
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        work()
    assert ended.value.code == EXIT_CODE == 143
    assert time.monotonic() - begin < 5


def test_what_is_being_put_away_is_put_away_whole() -> None:
    put_away = []
    with pytest.raises(SystemExit), ended_by_sigterm():
        try:
            terminate()
        finally:
            for part in range(8):
                time.sleep(0.1)
                put_away.append(part)
    assert len(put_away) == 8


def test_without_it_errors_pass_and_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(ValueError, match="own"), ended_by_sigterm():
        raise ValueError("own")
    with ended_by_sigterm():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
