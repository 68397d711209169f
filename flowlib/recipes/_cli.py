"""What the command lines of the recipes share: commands, presets, `--smoke`, processes."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Commands", "main"]

Commands = Mapping[str, Callable[..., Any]]


def main(
    commands: Commands,
    presets: Mapping[str, tuple[str, Any]],
    smoke: Callable[[Path], Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> Any:
    """Run a recipe from the command line.

    `--smoke [FOLDER]` runs the whole pipeline on made-up data, on the CPU. Otherwise the first word is a command; after
    `train` comes the name of a preset, whose every setting can be overridden.

    Args:
        commands: Functions with annotated arguments, by name; `train` takes one configuration.
        presets: A description and a configuration by name.
        smoke: The whole pipeline, in a folder.
        description: What `--help` says about the recipe.
        arguments: The command line; that of the process if `None`.

    Returns:
        What the command returned.

    Raises:
        SystemExit: With a message, if the command line or what it asks for is wrong.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--smoke"]:
        return smoke(Path(given[1]) if len(given) > 1 else Path(tempfile.gettempdir()) / "flowlib-smoke")
    try:
        import tyro
    except ImportError as error:
        raise SystemExit("the command line needs tyro: pip install flowlib[recipes]; --smoke runs without") from error
    try:
        if given[:1] == ["train"]:
            config = tyro.extras.overridable_config_cli(dict(presets), args=given[1:], description=description)
            return commands["train"](config)
        return tyro.extras.subcommand_cli_from_dict(dict(commands), args=given, description=description)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
