"""Networks by name or file, with their weights and transforms."""
