"""Finds the ``scaleot`` commands in texts, units and manifests, and asks the command line whether it takes them."""

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import entry_points

import click
import typer

from scaleot_core.cli import VERBS_GROUP, _build_app

Command = tuple[str, ...]
SHELL_OPERATORS = frozenset({">", ">>", "<", "|", "&", "&&", ";"})


@cache
def scaleot() -> click.Command:
    """Builds the command line of the installed verbs."""
    return typer.main.get_command(_build_app(tuple(entry_points(group=VERBS_GROUP))))


def fault_of(command: Sequence[str]) -> str | None:
    """Says what the command line does not take of a command such as ``("org", "list", "HOME")``; runs nothing."""
    found, words, path = scaleot(), list(command), "scaleot"
    while isinstance(found, click.Group):
        name, *words = words or [""]
        path, child = f"{path} {name}", found.commands.get(name)
        if child is None:
            return f"{path}: no such verb"
        found = child
    try:
        found.make_context(path, words)
    except click.ClickException as error:
        return f"{path}: {error.format_message()}"
    return None


def commands_in_blocks(markdown: str) -> Iterator[Command]:
    """Yields every line of every ``sh`` block as words, without comments."""
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield tuple(words)


def scaleot_commands(words: Sequence[str]) -> Iterator[Command]:
    """Yields what stands behind the program ``scaleot``: the first word, or the first that another program runs."""
    for index, word in enumerate(words):
        is_program = word == "scaleot" and (index == 0 or words[index - 1] in ("--", "vault"))
        if is_program or word.endswith("/bin/scaleot"):
            end = next((place for place, other in enumerate(words) if other in SHELL_OPERATORS), len(words))
            yield tuple(words[index + 1 : end])
            return
