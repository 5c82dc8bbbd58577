"""The paper: its comparison, Table 1, its figures, and the report."""
