"""Evaluation of methods on ID and OOD images, OpenOOD-style, without OpenOOD."""
