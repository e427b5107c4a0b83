"""`octavo models` and `octavo rm`: what is in the model store. Knows the terminal, not files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from octavo.weights.store import StoredModel


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `models` and `rm` to the command line."""
    models = subparsers.add_parser(
        "models",
        help="list the models that were pulled",
        description="List the models that were pulled, and the short names that can be.",
    )
    models.add_argument("--json", action="store_true", help="a JSON list on standard output")
    models.set_defaults(run=run)
    remove = subparsers.add_parser(
        "rm",
        help="remove a model",
        description="Forget models, and delete their files where Octavo's cache owns them. Files "
        "of your own and those in the Hugging Face cache stay.",
    )
    remove.add_argument("names", metavar="NAME", nargs="+", help="as `octavo models` lists it")
    remove.set_defaults(run=run_remove)


def run(args: argparse.Namespace) -> int:
    """List the models; the exit code."""
    from octavo.weights import store

    models = store.list_models()
    if args.json:
        import msgspec

        rows = [{**msgspec.to_builtins(model), "is_present": model.is_present} for model in models]
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return 0
    _print_table(models)
    return 0


def run_remove(args: argparse.Namespace) -> int:
    """Remove each name; the exit code."""
    from octavo.config import format_bytes
    from octavo.weights import store

    for name in args.names:
        removal = store.remove(name)
        if removal.kept is None:
            print(f"removed {name}, {format_bytes(removal.freed_bytes)}")
        else:
            print(f"removed {name} from the list; its files stay in {removal.kept}")
    return 0


def _print_table(models: list[StoredModel]) -> None:
    from rich.console import Console
    from rich.table import Table

    from octavo.config import format_bytes
    from octavo.weights.catalog import CATALOG

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400  # a pipe has no width: one line per model, for grep and cut
    if models:
        table = Table(box=None, pad_edge=False)
        for heading in ("NAME", "FORMAT", "ARCHITECTURE", "SIZE", "LICENSE", "PULLED", "PATH"):
            table.add_column(
                heading,
                justify="right" if heading == "SIZE" else "left",
                overflow="fold",
                no_wrap=heading in ("NAME", "SIZE", "PULLED"),
            )
        for model in models:
            table.add_row(
                model.name,
                model.format,
                model.architecture,
                format_bytes(model.num_bytes),
                model.license or "not stated",
                model.pulled_at.partition("T")[0],
                model.path if model.is_present else f"{model.path} (gone)",
            )
        console.print(table)
    else:
        console.print("No models yet.")
    names = {model.name for model in models}
    for entry in CATALOG.values():
        if entry.name not in names:
            console.print(
                f"octavo pull {entry.name}  fetches {entry.title}, "
                f"{format_bytes(sum(file.num_bytes for file in entry.files))}, {entry.license}",
                soft_wrap=True,
                style="dim",
            )
