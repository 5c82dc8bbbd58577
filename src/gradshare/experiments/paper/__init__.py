"""The paper's grid, its table and figures, at its own scale and at one that two cores finish."""
