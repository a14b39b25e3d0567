"""Few-shot task families: one file each. Nothing is downloaded; errors name missing files."""
