"""The embedded default: real handwritten digits, drawn glyphs, and the tiny base model made from them."""
