"""The doors for Python: everything a command does, without a terminal."""
