"""The paper's experiments: its grid, Table 1 and Figures 2 to 11, and the same questions at a scale
that two CPU cores finish. See README.md.
"""
