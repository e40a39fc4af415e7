"""`python -m dcdm_cli`, for launchers that start modules."""

from dcdm_cli.cli import main

if __name__ == "__main__":
    main()
