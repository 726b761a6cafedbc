"""The numbers of DESIGN 12, each measured as a ratio in one run; `python -m bench`."""
