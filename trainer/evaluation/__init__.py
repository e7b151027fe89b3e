"""Evaluation of a bundle: attribution methods, scores, tests of the mask."""
