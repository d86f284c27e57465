"""Other OOD libraries: this package's methods as their detectors, and their detectors in ``evaluate``."""
