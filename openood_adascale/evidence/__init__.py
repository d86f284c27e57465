"""From images to Evidence: the only wing that runs networks."""
