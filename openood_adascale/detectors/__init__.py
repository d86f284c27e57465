"""OOD detectors: a base class, and a file for each method. :mod:`.registry` lists them."""
