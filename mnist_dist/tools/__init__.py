"""The smaller commands, each a module, or a package with a module `command`: its settings, `Config`, and `main`."""
