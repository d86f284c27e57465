"""From images to feature statistics: the only package that runs a network."""
