"""Help is instant, complete, and its examples work."""

from __future__ import annotations

import importlib
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dcdm_cli import __version__
from dcdm_cli.cli import COMMANDS
from dcdm_cli.commands.panels import PANELS
from dcdm_cli.errors import ExitCode
from dcdm_cli.run.resolution import known_keys
from dcdm_cli.run.settings import Config

from .runner import run

DCDM = str(Path(sys.executable).with_name("dcdm"))
EXAMPLES = [
    example for command in COMMANDS for example in importlib.import_module(f"dcdm_cli.commands.{command}").EXAMPLES
]


def dcdm(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DCDM, *words], capture_output=True, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--version"], ["-V"], ["--show-completion", "bash"], ["score", "--help"]]
)
def test_answers_at_once(words: list[str]) -> None:
    """Processor time, the wall-clock time of a machine that does nothing else: 0.3 s, or on a slow machine four
    times what the libraries of every command line take there."""
    libraries = least_seconds(sys.executable, "-c", "import typer, pydantic, rich.console")
    assert least_seconds(DCDM, *words) < max(0.3, 4 * libraries)


@pytest.mark.parametrize("words", [["score"], ["generate"], ["config", "show"]])
def test_what_is_typed_is_named_in_one_way(words: list[str]) -> None:
    said = run(*words, "--help").stdout
    assert not re.search(r"<\w+>", said) and "[[" not in said
    assert "--run PATH" in said and "--config PATH" in said and "--preset TEXT" in said


def test_importing_the_package_costs_nothing() -> None:
    """0.1 s of processor time beyond Python's own start."""
    nothing = least_seconds(sys.executable, "-c", "")
    assert least_seconds(sys.executable, "-c", "import dcdm_cli; dcdm_cli.__version__") - nothing < 0.1


def least_seconds(*command: str) -> float:
    """Processor time of the quickest of three starts."""
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # a test has no shell to detect

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run(command, capture_output=True, check=False, env=env).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(seconds() for _ in range(3))


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert dcdm("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("words", "says"), [([], "dcdm score FOLDER"), (["config"], "show"), (["scroe"], "Did you mean 'score'")]
)
def test_without_a_command_help_is_near(words: list[str], says: str) -> None:
    made = dcdm(*words)
    assert made.returncode == 2 and says in made.stderr and made.stdout == ""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_does_not_import_torch(command: str) -> None:
    code = (
        "import sys; from dcdm_cli.cli import build_app\n"
        "try: build_app(sys.argv[1:])(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_the_first_screen_imports_nothing_heavy() -> None:
    """A word that is understood makes typer import pydantic itself; help comes before that."""
    code = (
        "import sys; from dcdm_cli.cli import build_app\n"
        "try: build_app([])(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'dcdm_cli.run.settings'} | ({'pydantic'} if sys.argv[1:] else set())\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    for words in (["--help"], []):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_options_stand_in_panels_the_common_ones_first() -> None:
    shown = run("generate", "-h").stdout
    places = [shown.index(f"\n{title}:\n") for title in PANELS]
    assert places == sorted(places)
    what, _, speed, output = (shown[a:b] for a, b in zip(places, [*places[1:], None], strict=True))
    assert what.index("--steps") < what.index("--ratio") < what.index("--scheduler")
    assert "--batch-size" in speed and "--devices" in speed and "--run" in output and "--json" in output


@pytest.mark.parametrize(("columns", "longest"), [("60", 60), ("80", 80), ("200", 100)])
def test_help_uses_the_terminals_width_as_far_as_lines_can_be_read(columns: str, longest: int) -> None:
    shown = run("finetune", "-h", env={"COLUMNS": columns}).stdout.splitlines()
    lines = [line for line in shown if "Example:" not in line]
    assert longest - 12 < max(map(len, lines)) <= longest


def test_defaults_are_those_that_preset_and_run_give(tmp_path: Path) -> None:
    (tmp_path / "dcdm.toml").write_text("[generate]\nsteps = 17\n")
    shown = " ".join(run("generate", "--preset", "digits", "--run", tmp_path, "-h").stdout.split())
    assert "[dcdm.toml: 17]" in shown
    assert "[preset digits: dpmpp]" in shown and "[default: normal:0.5,0.1]" in shown
    (tmp_path / "dcdm.toml").write_text("broken")
    assert "[default: 20]" in run("generate", "--help", "--run", tmp_path).stdout, "help is there when settings are not"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    words = ["config", "show", "--help"] if command == "config" else [command, "--help"]
    made = dcdm(*words, env={**os.environ, "COLUMNS": "200"})
    assert made.returncode == 0 and "Example: dcdm" in made.stdout
    assert "--json" in made.stdout and "--dry-run" in made.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_accepted(example: str, tmp_path: Path) -> None:
    words = shlex.split(re.split(r"[|>]", example)[0])
    assert words[0] == "dcdm"
    made = run(*words[1:], "--dry-run", cwd=tmp_path, code=None)
    if made.returncode == ExitCode.NOT_FOUND:  # the files that it is about are not here
        assert re.search(r"no (such )?(file|plan|prompts|list)|there is no", made.stderr)
    else:
        assert made.returncode == 0 and made.stderr == "" and made.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_in_the_help_of_its_command_in_one_piece() -> None:
    for command in COMMANDS:
        words = ["config", "show", "--help"] if command == "config" else [command, "--help"]
        shown = run(*words, env={"COLUMNS": "60"}).stdout
        for example in importlib.import_module(f"dcdm_cli.commands.{command}").EXAMPLES:
            assert f"Example: {example}\n" in shown


def test_every_setting_says_what_it_is() -> None:
    silent = []
    for key in known_keys():
        section, _, name = key.rpartition(".")
        model = type(getattr(Config(), section)) if section else Config
        if not model.model_fields[name].description:
            silent.append(key)
    assert silent == []
