"""Images of one's own: folders, image lists and CSVs, decoding, labels and classes."""
