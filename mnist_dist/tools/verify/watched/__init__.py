"""The real `train.py`, watched: what each update, and each file that it writes, should have been."""
