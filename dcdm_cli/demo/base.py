"""What the demo's images are called; importable in no time."""

SOURCE_NAME = "digits"  # what `dcdm score` calls the embedded images
