"""What a sealed bundle says of itself, for people."""

from rich.console import Console
from rich.table import Table

from fl_clients.verification import Inspection


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints the outer manifest and, where it was opened, the inner one."""
    outer, inner = found.outer, found.inner
    table = Table("", "", show_header=False, box=None)
    for name, value in (
        ("verified", "yes, every byte" if found.is_verified else "NO: anyone may have written this"),
        ("format", outer.format),
        ("suite", outer.suite),
        ("version", str(outer.version)),
        ("bundle", outer.bundle_id),
        ("can be opened until", str(outer.not_after)),
        ("objects", f"{len(outer.objects)}, {sum(one.size for one in outer.objects) / 1e6:.1f} MB of ciphertext"),
    ):
        table.add_row(name, value)
    console.print(table)
    files = Table("object", "file", "bytes")
    files.add_column("name of the ciphertext", overflow="fold")
    contents = (
        [(file.name, file.size) for file in inner.files]
        if inner
        else [("(encrypted)", one.size) for one in outer.objects]
    )
    for number, (sealed, (name, size)) in enumerate(zip(outer.objects, contents, strict=True), start=1):
        files.add_row(str(number), name, str(size), sealed.name)
    console.print(files)
    if inner:
        console.print_json(data=inner.model)
