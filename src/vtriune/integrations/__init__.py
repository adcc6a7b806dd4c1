"""Plugs into other engines. Each imports its engine; the rest of the project imports none of them."""
