"""What the generated images are worth: pure measures on arrays, and classifiers trained per arm and seed."""
