"""dcdm: extra training images of chosen difficulty for image classifiers."""

__version__ = "0.1.0"
