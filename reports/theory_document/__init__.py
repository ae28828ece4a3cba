"""`theory/README.md` and its pictures, generated from the registered claims with worked examples."""
