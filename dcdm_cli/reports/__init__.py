"""What the metrics say: terminal tables, figures and one self-contained HTML page."""
