"""The command `runs`: comparing runs."""
