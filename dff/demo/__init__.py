"""The demonstration: one photograph through the whole chain, told in one HTML report."""
