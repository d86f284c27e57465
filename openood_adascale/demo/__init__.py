"""Demo on rendered letters: data, network, evaluation and figure."""
