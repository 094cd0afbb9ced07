"""The smaller commands, each a module with its settings, `Config`, and what it does, `main`."""
