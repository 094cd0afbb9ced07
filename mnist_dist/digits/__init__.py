"""Where a run meets its task: the settings of train.py, its trained models, and what it reports."""
