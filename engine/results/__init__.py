"""What came of a run: figures, reports, files for other systems, adapters for people."""
