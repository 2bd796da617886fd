"""Price charts: rendering in many styles, labels, safe decoding and the vision encoder."""
