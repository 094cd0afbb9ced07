"""The command `tune`: searching for settings."""
