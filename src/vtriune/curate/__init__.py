"""Converters that write other data sets as rows of the released schema."""
