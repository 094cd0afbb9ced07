"""Runs, read back from their folders: what is known of each, which are alike, and tables of them."""
