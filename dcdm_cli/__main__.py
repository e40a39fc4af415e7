"""`python -m dcdm_cli`, for launchers that start modules.

Also where the installed program begins: nothing is imported before somebody listens for Ctrl-C.
"""

import sys


def main() -> None:
    """Ends with exit code 130, without a word, when it is interrupted while the program itself is being imported."""
    try:
        from dcdm_cli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # ExitCode.INTERRUPTED, whose module may be the one that was being imported


if __name__ == "__main__":
    main()
