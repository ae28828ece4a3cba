"""Methods of the literature beside GA and NPO, one file each, and what a profile may set for them."""
