"""Captions for training images: from templates, or from an image-to-text model."""
