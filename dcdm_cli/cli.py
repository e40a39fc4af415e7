"""The app and the error boundary: every failure leaves through `main`, as a sentence, a remedy and an exit code."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from dcdm_cli import __version__
from dcdm_cli.console import Console
from dcdm_cli.errors import DcdmError, ExitCode, InterruptedRunError, MismatchError, OutOfMemoryError, UsageError
from dcdm_cli.files import system_error
from dcdm_cli.signals import asked_to_stop, ending, install_handlers, was_interrupted
from dcdm_cli.workers.environment import SAFE_PATH

# In pipeline order. Only the command that is asked for is imported: --help must not wait for torch or pydantic.
COMMANDS = {
    "score": "Score how hard each real image is for a classifier.",
    "caption": "Write a caption for each image, by template or by a model.",
    "finetune": "Fine-tune LoRA and the difficulty encoder, then calibrate.",
    "distill": "Distil guidance: one network call instead of two or three.",
    "export": "Export the fused network to ONNX and TensorRT.",
    "generate": "Generate images of chosen difficulty.",
    "evaluate": "Measure what the images are, what they are worth and cost.",
    "review": "List images to look at: suspects, hardest, copies, misses.",
    "push": "Put the adapter or a set of images on the hub, privately.",
    "demo": "Run the whole job on embedded digits, offline, on a CPU.",
    "status": "Show where the run folder stands, and the next command.",
    "check": "Check this run: stale or damaged files, and repair some.",
    "doctor": "Check this machine: versions, devices, backends, hub, disk.",
    "config": "Show the settings and where each value comes from.",
}
EPILOG = (
    "Pipeline: dcdm score → caption → finetune → distill → export → generate → evaluate, "
    "all in one run folder (--run, $DCDM_RUN). Distill and export are optional. "
    "dcdm COMMAND -h shows a command's options, with the defaults that this run and --preset give them."
)


def build_app(words: Sequence[str]) -> typer.Typer:
    """The app with the real command that `words` asks for, and one-line stand-ins for the others."""
    app = typer.Typer(
        name="dcdm",
        help="Extra training images of chosen difficulty for image classifiers (DCDM, arXiv 2411.18109).",
        epilog=EPILOG,
        invoke_without_command=True,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        if name in words:  # any word: options may stand before the command, and a folder called so costs one import
            importlib.import_module(f"dcdm_cli.commands.{name}").register(app, summary)
        else:
            app.command(name, help=summary)(_stand_in)
    return app


def main() -> None:
    """Console entry point. Exit codes: dcdm_cli.errors.ExitCode."""
    # A Python that is started from here would import modules of the folder one stands in.
    os.environ.update(SAFE_PATH)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would read what every installed package says
    _open_closed_streams()
    warnings.filterwarnings("ignore", module="huggingface_hub")  # about how other libraries call it
    # before anything is parsed: a slip on the command line is a document too
    console = Console(as_json="--json" in sys.argv)
    install_handlers(console.warn, lambda: _end(console))
    _show_log(console)
    try:
        completing = (os.environ.get(name, "").split() for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"))
        words = [*sys.argv[1:], *(word for line in completing for word in line)]  # of bash; of zsh and fish
        # standalone: typer would print errors and end the process by itself, with codes of its own.
        code = build_app(words)(standalone_mode=False, obj=console)
        # commands return nothing; a number is that of a typer.Exit
        code = code if isinstance(code, int) else ExitCode.OK
        if asked_to_stop():
            stopped = _stopped()
            if code == ExitCode.INTERRUPTED:  # typer's word for an import that was cut off; else it was finished first
                console.error(stopped)
            code = stopped.code
        ending[0] = True
    except BaseException as error:
        ending[0] = True  # before the error is told: a signal meanwhile must not replace its code
        code = exit_code(error, console)
    gc.freeze()  # Python looks through all that torch has made once more before it ends: seconds on a busy machine
    sys.exit(code)


def _end(console: Console) -> None:
    """Says that it was stopped, and ends at once: a kill would leave no less."""
    stopped = _stopped()
    console.error(stopped)
    # os._exit flushes nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stopped.code)


def exit_code(error: BaseException, console: Console) -> int:
    """Prints what the user needs to know about a failure and returns the code for the shell."""
    if os.environ.get("DCDM_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    # Typer makes SystemExit(1) of a broken pipe, so it has to be looked for behind other errors, and first.
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in Python's buffers goes nowhere, silently
        return ExitCode.BROKEN_PIPE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.FAILED
    known = _known(error)
    # some libraries make an error of their own of an interrupt, of which ours may be made: a value's check calls it bad
    collateral = asked_to_stop() if known is None else was_interrupted() and not isinstance(known, InterruptedRunError)
    if collateral and isinstance(error, Exception):
        known = _stopped()
    if known is not None:
        console.error(known)
        return known.code
    if isinstance(error, typer.Exit):
        return error.exit_code
    # By what it can do, not by its class: some versions of typer have a click of their own.
    if hasattr(error, "exit_code") and hasattr(error, "show"):
        return _usage_error(error, console)
    console.error(DcdmError(f"{type(error).__name__}: {error}", "set DCDM_DEBUG=1 for the traceback; please report it"))
    return ExitCode.FAILED


def _known(error: BaseException) -> DcdmError | None:
    if isinstance(error, DcdmError):
        return error
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _stopped()
    # torch's by name: nothing here imports it
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemoryError(
            f"out of memory: {error}", "use a smaller --batch-size; for fine-tuning also --gradient-checkpointing"
        )
    if isinstance(error, RecursionError):
        return MismatchError(
            "files or folders are nested too deeply in one another",
            "find what nobody meant (find DIR -mindepth 100), and remove it; set DCDM_DEBUG=1 to see where it happened",
        )
    return system_error(error)


def _stopped() -> InterruptedRunError:
    return InterruptedRunError(
        "stopped; finished work is kept",
        "run the same command again to continue",
        signal_name=asked_to_stop() or "SIGINT",
    )


def _usage_error(error: Any, console: Console) -> int:
    """Typer's own, with the usage line that it prints; its text has no control characters."""
    error.show()
    command = error.ctx.command_path if getattr(error, "ctx", None) else "dcdm"
    console.error_document(UsageError(error.format_message(), f"{command} --help"))
    return error.exit_code


def _open_closed_streams() -> None:
    """A standard stream that is closed would give its number to the next file that is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < number:  # the lowest free number is taken
                pass
            # not closefd: the number stays taken
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _show_log(console: Console) -> None:
    """The program's own log goes where its warnings go."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: console.warn(record.getMessage())
    log = logging.getLogger("dcdm_cli")
    log.addHandler(handler)
    log.propagate = False  # a library that sets up the root logger would show each line a second time


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", help="Show the version and stop.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Without a command: the usual order of commands, and where the run folder stands."""
    if ctx.invoked_subcommand is None:
        from dcdm_cli.stages.status import overview

        console = ctx.obj if isinstance(ctx.obj, Console) else Console()
        for line in overview(COMMANDS):
            console.note(line)
        raise typer.Exit(ExitCode.USAGE)


def _stand_in() -> None:
    raise AssertionError("the command that is asked for is always imported")
