"""Exported networks: a module and its signature in, files out. Imports nothing of dcdm_cli."""
