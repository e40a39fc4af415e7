"""How hard an image is for a classifier: scores, classifiers, out-of-fold fitting and the stored scorer."""
