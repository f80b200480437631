"""Every name a model offers, where in a pass it lives and what kind it is; taking it out of one pass."""
