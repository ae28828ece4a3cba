"""Calculators that turn the laws around: the lr, rank or share of the weights that a wanted gain asks for."""
