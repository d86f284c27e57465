"""The OpenOOD plugin: registration, device, stubs and postprocessors; the only package that imports OpenOOD."""
