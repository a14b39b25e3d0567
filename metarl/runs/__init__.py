"""A run on disk: its configuration, folder, checkpoints and records."""
