"""The command line: the composition root, the one place that imports every room, and only when a verb needs it."""
