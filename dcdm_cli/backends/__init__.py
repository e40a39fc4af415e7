"""Engines behind one denoiser contract."""
