"""The data sets of the literature: one row each, and their castings, a file a family."""
