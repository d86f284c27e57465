"""Other libraries of out-of-distribution detection, a folder each: their detectors here, and the methods of this package
there. A library is needed by its own folder alone."""
