"""Exit codes, options and early checks of all commands."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import click

from skanomaly_vit._images.listing import has_image_suffix
from skanomaly_vit.cli._tables import FORMATS, WHOLE, format_of
from skanomaly_vit.cli._terminal import Terminated, terminable

#: Exit codes.
DONE, USAGE, UNREADABLE, MACHINE, MISSED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143

HARMLESS = "A model is numbers and text; reading it runs no code."

EXIT_CODES = (
    "Exit codes: 0 done, 1 wrong usage or a file that cannot be read or written, 2 some images "
    "are unreadable, 3 model and machine do not match, 4 a limit that was asked for is "
    "missed, 130 interrupted, 143 terminated."
)


#: Commands in the order of work.
ORDER = (
    "fit", "info", "verify", "evaluate", "score", "report", "map", "inspect",
    "serve", "watch", "update", "tune", "threshold", "audit", "drift", "compare", "export",
    "backbones",
)  # fmt: skip


class Program(click.Group):
    """A group of commands with exit codes of its own: click's for wrong usage would be 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands in the order of work, for the help."""
        return [name for name in ORDER if name in self.commands]

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        try:
            with terminable():
                code = super().main(args, **options | {"standalone_mode": False})
        except click.ClickException as error:
            error.show()
            code = USAGE if isinstance(error, click.UsageError) else error.exit_code
        except click.Abort as stopped:
            click.echo("Interrupted.", err=True)
            code = TERMINATED if isinstance(stopped.__cause__, Terminated) else INTERRUPTED
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read the output has seen enough. Python's last flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (OSError, MemoryError) as error:  # no space left, a vanished folder...
            raise click.ClickException(_describe(error)) from error
        except ImportError as error:
            raise click.ClickException(
                f"a package is missing or damaged: {error}. Install it again: "
                "pip install --force-reinstall skanomaly-vit"
            ) from error
        return DONE


def _describe(error: OSError | MemoryError) -> str:
    name, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
    return f"{reason}: {os.fsdecode(name)!r}" if reason and name else str(error)


class LimitMissed(click.ClickException):
    """A measured figure is on the wrong side of a limit that was asked for."""

    exit_code = MISSED


class MachineMismatch(click.ClickException):
    exit_code = MACHINE


def epilog(*examples: str, note: str) -> str:
    """Example lines, which click must leave as they are, and a note."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in examples), "", note])


def given(**options: Any) -> dict[str, Any]:
    """Convert the options that the user gave to parameters; device "auto" becomes None."""
    names = {"jobs": "n_jobs", "checkpoint": "checkpoint_dir"}
    return {
        names.get(name, name): None if name == "device" and value == "auto" else value
        for name, value in options.items()
        if value is not None
    }


def check_format(output: str | None, kind: str | None) -> str:
    """The format of a table, from an option or a file's suffix."""
    kind = kind or ("csv" if output is None else format_of(output))
    if kind is None:
        raise click.UsageError(
            f"{output!r} does not end in {', '.join(f'.{kind}' for kind in FORMATS)}; rename it, "
            "or choose a format with --format."
        )
    if kind in WHOLE:
        if output is None:
            raise click.UsageError(f"{kind} is for files: add -o FILE, or choose csv or jsonl.")
        extra, purpose = _OF_FORMAT[kind]
        require(extra, purpose, "csv and jsonl do without it")
    return kind


#: Extra that a format needs, and what it is needed for.
_OF_FORMAT = {"parquet": ("parquet", "a Parquet file"), "xlsx": ("excel", "a file of Excel")}

#: Packages that a command needs from each extra; after a colon, for a part of its uses.
_EXTRAS = {
    "excel": ("openpyxl",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx:runtime": ("onnx", "onnxruntime"),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "serve": ("prometheus_client", "starlette", "uvicorn", "watchdog"),
}


def require(extra: str, purpose: str, way_out: str = "") -> None:
    """Raise if a package of an extra is missing."""
    missing = [package for package in _EXTRAS[extra] if not _is_installed(package)]
    if missing:
        command = f"pip install 'skanomaly-vit[{extra.partition(':')[0]}]'"
        raise click.UsageError(
            f"{purpose} needs {', '.join(missing)}, not installed here: "
            f"{'; '.join(filter(None, [command, way_out]))}."
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a finder refuses it, or it is None in `sys.modules`
        return False


def _check_device(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise click.BadParameter(f"{value!r} is none of auto, cpu, mps, cuda, cuda:0, cuda:1...")


def _check_jobs(ctx: click.Context, parameter: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("0 threads can do nothing; pass 1 or more, or -1 for all cores.")
    return value


def check_not_model(output: str | None, model: str) -> None:
    """Reject an output that would take the place of the model."""
    if output is not None and os.path.exists(output) and os.path.samefile(output, model):
        raise click.UsageError(f"-o {output!r} is the model itself; pass another name.")


def check_output(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Reject an output that cannot be written, before any work."""
    if value is None:
        return None
    if has_image_suffix(value):
        raise click.BadParameter(f"{value!r} ends like an image; pass another name.")
    return _writable(value)


def check_picture(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Reject a picture that cannot be written, before any work."""
    if value is None:
        return None
    if not value.lower().endswith(".png"):
        raise click.BadParameter(f"{value!r} does not end in .png, as the picture must.")
    return _writable(value)


def _writable(value: str) -> str:
    folder = os.path.dirname(os.path.realpath(value))
    if os.path.isdir(value):
        raise click.BadParameter(f"{value!r} is a folder; pass the name of a file.")
    if not os.path.isdir(folder):
        raise click.BadParameter(f"there is no folder {folder!r}; create it first.")
    if not os.path.exists(value) or os.path.isfile(value):  # no pipe, no device
        _probe(folder)
    return value


def _probe(folder: str) -> None:
    """Raise unless a file can be written into a folder; permissions do not tell of all reasons."""
    part = os.path.join(folder, f".skanomaly-{uuid.uuid4().hex}.part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        os.unlink(part)
    except OSError as error:
        raise click.BadParameter(
            f"the folder {folder!r} cannot be written to: {error.strerror}."
        ) from error


EXISTING_FILE = click.Path(exists=True, dir_okay=False)


class ModelPath(click.Path):
    """The file of a model."""

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
        if os.path.isdir(value):
            self.fail(
                f"{value!r} is a directory; the model file comes first, as `skanomaly fit` wrote "
                "it, and then the images.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


model_argument = click.argument("model", type=ModelPath(exists=True, dir_okay=False))

images_argument = click.argument(
    "images", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True)
)

device_option = click.option(
    "--device",
    metavar="NAME",
    callback=_check_device,
    help="Device of the networks: cpu, cuda, cuda:1, mps, or auto for the best one.",
)

jobs_option = click.option(
    "--jobs",
    type=int,
    metavar="N",
    callback=_check_jobs,
    help="Threads that decode images; -1 uses all cores.",
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images to process at once.",
)

max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Reject images of more pixels, which fill the memory.  [default: the model's; 2^27]",
)

readers_option = click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people, or for programs.",
)

map_range_option = click.option(
    "--map-range",
    type=(float, float),
    metavar="LOW HIGH",
    help="Values of maps at the ends of the color scale, in standard deviations of normal patches. "
    " [default: 2 8]",
)


def check_range(map_range: tuple[float, float] | None) -> tuple[float, float]:
    """The range of an option, or that of all pictures of maps."""
    from skanomaly_vit._images.map_range import check_map_range

    try:
        return check_map_range(map_range)
    except ValueError as error:
        raise click.UsageError(str(error).replace("map_range=", "--map-range ")) from error


null_option = click.option(
    "-0", "--null", is_flag=True, help="Paths on standard input end in null bytes, not newlines."
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of what a fit learns, and from which backbone."""
    for option in reversed(
        (
            click.option(
                "--backbone",
                metavar="NAME",
                help="A timm model; `skanomaly backbones` lists some.  [default: embedded]",
            ),
            click.option(
                "--pretrained",
                type=EXISTING_FILE,
                metavar="FILE",
                help="Checkpoint of the backbone.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16", "auto"]),
                help="Floating type of the backbone; auto is bfloat16 where it is fast.  "
                "[default: float32]",
            ),
            click.option(
                "--image-size",
                type=click.IntRange(min=1),
                metavar="PIXELS",
                help="Side of the square that images are resized to.  [default: the backbone's]",
            ),
            click.option(
                "--n-blocks",
                type=click.IntRange(min=1),
                metavar="N",
                help="Number of last blocks that get a student.  "
                "[default: 5; 10 in the paper's recipe]",
            ),
            click.option(
                "--recipe",
                type=click.Choice(["default", "paper"]),
                help="Values of students, views, densities and fusion.  [default: default]",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, 2**32 - 1),
                default=0,
                show_default=True,
                metavar="N",
                help="The same seed and images give the same result.",
            ),
            click.option(
                "--memory",
                type=click.Path(file_okay=False),
                metavar="FOLDER",
                help="Cache for fits with other options on the same images.",
            ),
        )
    ):
        command = option(command)
    return command
